"""One tiny trainer of each kind, in float64 where its values are compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.data import ClassificationData
from metalearn.models import MLP, Ensemble
from metalearn.tasks import FewShotTasks
from metalearn.trainers import MAML, EnsembleTrainer, MetaTrainer, PerSampleTrainer, Trainer
from metalearn.trainers.diagnostics import training_diagnostics
from tests.support.builders import patterns, sinusoid_trainer

__all__ = [
    "APPLY",
    "MAKERS",
    "blobs",
    "clipped_sum",
    "ensemble",
    "few_shot",
    "learners",
    "per_sample",
]

COMMON: dict[str, Any] = {"steps": 6, "progress": False, "eval_every": 3, "log_every": 2}


def blobs(count: int = 60, classes: int = 3) -> ClassificationData:
    draws = torch.Generator().manual_seed(0)
    targets = torch.arange(count) % classes
    inputs = torch.randn(count, 4, generator=draws) + 1.5 * targets[:, None]
    parts = torch.arange(count).split([count // 2, count // 4, count - count // 2 - count // 4])
    splits = dict(zip(("train", "validation", "test"), parts))
    return ClassificationData(inputs, targets, tuple("abc"[:classes]), splits)


def clipped_sum(trainer: Any, batch: Any, limit: float) -> dict[str, Tensor]:
    """Σ g_i·min(1, C/‖g_i‖) by backward passes over single samples."""
    total = {n: torch.zeros_like(p) for n, p in trainer.module.named_parameters()}
    for x, y in zip(*batch):
        trainer.module.zero_grad()
        F.cross_entropy(trainer.module(x[None]), y[None]).backward()
        grads = {n: p.grad.clone() for n, p in trainer.module.named_parameters()}
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads.values()))
        for name, grad in grads.items():
            total[name] += grad * min(1.0, limit / norm)
    trainer.module.zero_grad(set_to_none=True)
    return total


def per_sample(**settings: Any) -> PerSampleTrainer:
    settings = {**COMMON, "batch_size": 8, "diagnostics": (), **settings}
    if settings["diagnostics"] is None:  # the trainer's own
        del settings["diagnostics"]
    model = settings.pop("model", None) or MLP((4,), 3, hidden=(5,))
    return PerSampleTrainer(model, blobs(), **settings)


def ensemble(**settings: Any) -> EnsembleTrainer:
    members = Ensemble.from_factory(lambda s: MLP((4,), 3, hidden=(5,), seed=s), [0, 1, 2])
    settings = {**COMMON, "batch_size": 8, "engine": "batched", **settings}
    return EnsembleTrainer(members, blobs(), **settings)


def few_shot(**settings: Any) -> MetaTrainer:
    tasks = FewShotTasks(patterns(), way=3, shot=2, query=2)
    maml = MAML(inner_lr=0.2, inner_steps=2, eval_steps=2, engine="batched", method="reverse")
    settings = {**COMMON, "maml": maml, "meta_batch": 4, "validation_tasks": 4, **settings}
    model = settings.pop("model", None) or MLP((1, 4, 4), 3, hidden=(5,))
    return MetaTrainer(model, tasks, **settings)


def learners(**settings: Any) -> MetaTrainer:
    make: Callable[[int], Any] = lambda s: MLP((1, 4, 4), 3, hidden=(5,), seed=s)  # noqa: E731
    return few_shot(model=Ensemble.from_factory(make, [0, 1]), **settings)


def waves(**settings: Any) -> MetaTrainer:
    maml = MAML(inner_lr=0.02, eval_steps=2, engine="vmap", method="reverse")
    return sinusoid_trainer(**{**COMMON, "maml": maml, **settings})


MAKERS: dict[str, Callable[..., Trainer]] = {
    "per_sample": per_sample,
    "ensemble": ensemble,
    "few_shot": few_shot,
    "waves": waves,
    "learners": learners,
}
_META = {"shot", "task", "predictive", "loss"}
_KINDS: dict[str, set[str]] = {
    "per_sample": {"sample", "predictive", "loss"},
    "ensemble": {"sample", "member", "predictive", "loss"},
    "few_shot": _META,
    "waves": _META,
    "learners": _META | {"member"},
}
APPLY = [
    (kind, name)
    for kind, there in _KINDS.items()
    for name, found in training_diagnostics().items()
    if there & set(found.kinds)
]
"""Every trainer with every diagnostic of the table that has something to see of it."""
