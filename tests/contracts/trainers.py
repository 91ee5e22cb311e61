"""The trainers that contracts run over: one tiny training of each kind, and of every learner."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from metalearn.models import MLP, Ensemble
from metalearn.tasks import FewShotTasks, SinusoidTasks
from metalearn.trainers import (
    HYPER_KINDS,
    MAML,
    EnsembleTrainer,
    HyperTrainer,
    MetaTrainer,
    PerSampleTrainer,
    PrivateMetaTrainer,
    PrivateTrainer,
    Trainer,
)
from metalearn.trainers.meta.making import takes_maml
from metalearn.trainers.meta.registry import LEARNERS
from tests.support.builders import (
    Scripted,
    ensemble_trainer,
    episode_trainer,
    patterns,
    sinusoid_trainer,
)
from tests.support.devices import DEVICE
from tests.support.diagnostic_cases import per_sample
from tests.support.small_data import blobs, waves

__all__ = ["OF_REGRESSION", "OWN_SETTINGS", "TRAINERS", "WITHOUT_DIAGNOSTICS", "Make", "network"]

Make = Callable[..., Trainer]
TASKS = FewShotTasks(patterns(), way=3, shot=2, query=2)


def network(seed: int = 0) -> MLP:
    """For `patterns`; its outputs serve as logits of three classes and as features."""
    return MLP((1, 4, 4), 3, hidden=(6,), seed=seed)


def _adam_inside(**settings: Any) -> Trainer:
    maml = MAML(inner_lr=0.01, inner_optimizer="adam", first_order=True, chunk_size=3)
    momentum: Any = lambda ps: torch.optim.SGD(ps, lr=0.01, momentum=0.9)  # noqa: E731
    return sinusoid_trainer(**{"maml": maml, "optimizer": momentum, **settings})


def _limited(**settings: Any) -> Trainer:
    """Clipped inner gradients, each of a part of the support set."""
    maml = MAML(inner_lr=0.02, inner_steps=2, eval_steps=3, inner_clip=1.0, support_batch=2)
    return sinusoid_trainer(**{"maml": maml, **settings})


def _learnt(members: int, **settings: Any) -> Trainer:
    """Hyperparameters of the inner loop, learnt beside the weights."""
    inner: Any = {
        "learn": ["lr", "momentum"],
        "lr_per": "parameter_and_step",
        "inner_momentum": 0.5,
    }
    maml = MAML(inner_lr=0.02, inner_steps=2, eval_steps=3, **inner)
    seeds, tasks = range(members), SinusoidTasks(shot=4, query=4)
    made: Any = Ensemble.from_factory(_waves, seeds) if members else _waves()
    settings = {"steps": 6, "meta_batch": 4, "validation_tasks": 5, "progress": False} | settings
    return MetaTrainer(made, tasks, **{"maml": maml, "clip": 1.0, **settings})


def _waves(seed: int = 0) -> MLP:
    return MLP((1,), 1, hidden=(6,), seed=seed)


def _sweep(**settings: Any) -> Trainer:
    """Members of their own learning rates, two at a time, on resamples."""
    rates = {"low": 1e-3, "high": 1e-1}
    return ensemble_trainer(
        **{"lr": rates, "chunk_size": 2, "bootstrap": True, "label_smoothing": 0.1, **settings}
    )


def _scripted(**settings: Any) -> Trainer:
    return Scripted([0.3, 0.5, 0.4, 0.6, 0.1], **{"steps": 6, "progress": False, **settings})


def _per_sample(**settings: Any) -> Trainer:
    return per_sample(**{"diagnostics": ["gradient_norms", "noise_scale"], **settings})


def _private(**settings: Any) -> Trainer:
    """With noise that can be drawn again, without which no run is another's continuation."""
    given: Any = {"noise_multiplier": 1.0, "noise": "seeded", "batch_size": 8, "steps": 6}
    given |= {"delta": 1e-3, "validation": "public", "reserve": 1, "progress": False, **settings}
    return PrivateTrainer(_planar(), blobs(), **given)


def _private_noisy(**settings: Any) -> Trainer:
    """With a validation split that is private too."""
    return _private(**{"validation": "noisy", "validation_noise": 1.0, **settings})


def _private_meta(**settings: Any) -> Trainer:
    given: Any = {"users": 30, "meta_batch": 4, "noise_multiplier": 1.0, "noise": "seeded"}
    given |= {"delta": 1e-3, "validation": "public", "validation_tasks": 5, "reserve": 1}
    given |= {"steps": 6, "maml": MAML(inner_lr=0.02, eval_steps=2), "progress": False, **settings}
    return PrivateMetaTrainer(_waves(), SinusoidTasks(shot=4, query=4), **given)


def _regression(**settings: Any) -> Trainer:
    """Members on real targets, by means and log-variances."""
    settings = {"steps": 6, "batch_size": 8, "progress": False, "engine": "batched"} | settings
    model = Ensemble.from_factory(lambda seed: MLP((2,), 4, hidden=(8,), seed=seed), range(3))
    return EnsembleTrainer(model, waves(), **settings)


def _regression_per_sample(**settings: Any) -> Trainer:
    quiet = {"steps": 6, "batch_size": 8, "progress": False, "diagnostics": ()}
    return PerSampleTrainer(
        MLP((2,), 2, hidden=(8,)), waves(), **{"loss": "mse"} | quiet | settings
    )


def _hyper(kind: str, **settings: Any) -> Trainer:
    """What shapes runs; of each kind with another start."""
    start = {"example_weights": "warm", "learning_rates": "fresh"}.get(kind, "fixed")
    inner = {"steps": 3, "batch_size": 8, "lr": 0.1, "start": start}
    settings = {"steps": 6, "progress": False, "outer_batch": 6, "inner": inner} | settings
    return HyperTrainer(_planar(), blobs(), hyper=kind, factory=_planar, **settings)


def _planar(seed: int = 0) -> MLP:
    return MLP((2,), 3, hidden=(5,), activation="tanh", seed=seed)


OF_REGRESSION = {"cnp"}
"""Learners that take no tasks of classification."""
OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "cnp": {"representation": 4, "hidden": (5,)},
    "in_context": {"classes": 4, "heads": 1, "depth": 1},
    "baseline_pp": {"head_steps": 3, "head_lr": 0.5, "batch_size": 5},
    "rfs": {"batch_size": 5},
}
"""By learner, settings that make it as small as the networks here."""


def _learner(name: str, members: int, **settings: Any) -> Trainer:
    waves = name in OF_REGRESSION
    tasks = SinusoidTasks(shot=4, query=4) if waves else TASKS
    make = _waves if waves else network
    model: Any = Ensemble.from_factory(make, range(members)) if members else make()
    settings = {"steps": 6, "meta_batch": 4, "validation_tasks": 5, "progress": False} | settings
    if takes_maml(LEARNERS[name].make):
        settings.setdefault("maml", MAML(inner_lr=0.2, inner_steps=2, eval_steps=2))
    own = OWN_SETTINGS.get(name)
    learner: Any = partial(LEARNERS[name].make, **own) if own else name
    return MetaTrainer(model, tasks, learner=learner, **settings)


_MAKERS: dict[str, Make] = {
    "scripted": _scripted,
    "waves": sinusoid_trainer,
    "waves_first_order": _adam_inside,
    "waves_limited": _limited,
    "waves_learnt": partial(_learnt, 0),
    "waves_learnt_members": partial(_learnt, 2),
    "episodes": episode_trainer,
    "ensemble": ensemble_trainer,
    "sweep": _sweep,
    "per_sample": _per_sample,
    "private": _private,
    "private_noisy": _private_noisy,
    "private_meta": _private_meta,
    "regression": _regression,
    "regression_per_sample": _regression_per_sample,
    **{f"hyper_{kind}": partial(_hyper, kind) for kind in HYPER_KINDS},
    **{name: partial(_learner, name, 0) for name in LEARNERS if name != "maml"},
    **{f"{name}_members": partial(_learner, name, 2) for name in LEARNERS},
}
TRAINERS = {name: partial(make, device=DEVICE) for name, make in _MAKERS.items()}
WITHOUT_DIAGNOSTICS = {
    "scripted",
    "private",
    "private_noisy",
    "private_meta",
    *(name for name in TRAINERS if name.startswith("hyper_")),
}
"""Trainers of which diagnostics have nothing to see."""
