"""Small labelled data that can be learnt, and trainers on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from metalearn.data import ClassificationData, RegressionData
from metalearn.models import MLP, Ensemble
from metalearn.trainers import (
    BatchEnsembleTrainer,
    EnsembleTrainer,
    MCDropoutTrainer,
    SnapshotTrainer,
    SWAGTrainer,
)

MEMBERS = 3


def blobs(seed: int = 0, shift: float = 0.0) -> ClassificationData:
    """Three clouds in the plane, 32 samples of each, interleaved."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(96) % 3
    centres = torch.tensor([[2.0, 0.0], [-1.0, 2.0], [-1.0, -2.0]])
    inputs = centres[targets] + torch.randn(96, 2, generator=generator) + shift
    splits = {"train": range(48), "validation": range(48, 72), "test": range(72, 96)}
    indices: Any = {name: torch.tensor(list(rows)) for name, rows in splits.items()}
    return ClassificationData(inputs, targets, ("a", "b", "c"), indices)


def network(seed: int = 0) -> nn.Module:
    return MLP((2,), 3, hidden=(8,), dropout=0.2, seed=seed)


def waves(targets: int = 2, seed: int = 0) -> RegressionData:
    """Targets of two inputs, 96 samples: sines of different phases, with some noise."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(96, 2, generator=generator)
    phases = torch.arange(targets) / targets
    noise = 0.1 * torch.randn(96, targets, generator=generator)
    splits = {"train": range(48), "validation": range(48, 72), "test": range(72, 96)}
    indices: Any = {name: torch.tensor(list(rows)) for name, rows in splits.items()}
    return RegressionData(inputs, torch.sin(inputs.sum(1, keepdim=True) + phases) + noise, indices)


def regressor(seed: int = 0, outputs: int = 4) -> nn.Module:
    """For `waves`: means and log-variances of two targets."""
    return MLP((2,), outputs, hidden=(8,), dropout=0.2, seed=seed)


def regressors(members: int, outputs: int = 4) -> Ensemble:
    return Ensemble.from_factory(lambda seed: regressor(seed, outputs), range(members))


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def trainer(kind: type[Any], **settings: Any) -> Any:
    """Of M = 3 members; 12 steps of batches of 16 (three of them an epoch)."""
    nets = MEMBERS if kind.networks is None else kind.networks
    model = settings.pop("model", None) or Ensemble.from_factory(network, range(nets))
    cadence = {"eval_every": 4, "log_every": 4, "checkpoint_every": 4, "engine": "loop"}
    given = {
        "members": MEMBERS,
        "steps": 12,
        "batch_size": 16,
        "progress": False,
        "optimizer": _sgd,
        **cadence,
    }
    if kind is SWAGTrainer:
        given |= {"start": 0.25, "rank": 2}
    return kind(model, settings.pop("data", None) or blobs(), **given | settings)


KINDS: dict[str, type[Any]] = {
    "deep": EnsembleTrainer,
    "mc_dropout": MCDropoutTrainer,
    "batch_ensemble": BatchEnsembleTrainer,
    "snapshot": SnapshotTrainer,
    "swag": SWAGTrainer,
}
Make = Callable[..., Any]
