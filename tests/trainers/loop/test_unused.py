"""A parameter that the loss does not use is skipped by optimisers, as torch skips it.

Axes: M members.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.errors import SettingError
from metalearn.models import Ensemble
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import (
    MAML,
    EnsembleTrainer,
    MetaLearner,
    MetaTrainer,
    PerSampleTrainer,
    SnapshotTrainer,
    SWAGTrainer,
    Trainer,
)
from metalearn.trainers.members.trained import trained_parameters
from tests.support.small_data import blobs


class Net(nn.Module):
    """A small network, beside which a layer stands that forward may leave out."""

    def __init__(self, inputs: int, outputs: int, seed: int = 0, *, spare: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head = nn.Linear(inputs, 6), nn.Linear(6, outputs)
        if spare:
            self.spare = nn.Linear(3, 3)
            self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.body(x)))
        return out


def meta(make: Callable[..., nn.Module], **settings: Any) -> Trainer:
    given = {"meta_batch": 2, "validation_tasks": 2, "maml": MAML(inner_lr=0.01), **settings}
    return MetaTrainer(make(1, 1), SinusoidTasks(), **given)


def meta_members(make: Callable[..., nn.Module], **settings: Any) -> Trainer:
    model = Ensemble.from_modules([make(1, 1, seed) for seed in range(2)])
    given = {"meta_batch": 2, "validation_tasks": 2, "maml": MAML(inner_lr=0.01), **settings}
    return MetaTrainer(model, SinusoidTasks(), **given)


def _stack(kind: Any, **own: Any) -> Callable[..., Trainer]:
    def build(make: Callable[..., nn.Module], **settings: Any) -> Trainer:
        nets = 2 if kind.networks is None else kind.networks
        model = Ensemble.from_modules([make(2, 3, seed) for seed in range(nets)])
        given = {"engine": "batched", "batch_size": 16}
        found: Trainer = kind(model, blobs(), **given | settings | own)
        return found

    return build


def per_sample(make: Callable[..., nn.Module], **settings: Any) -> Trainer:
    return PerSampleTrainer(make(2, 3), blobs(), batch_size=16, **settings)


RATES: Any = {"maml": MAML(inner_lr=0.01, learn=["lr"], lr_per="parameter")}
TRAINERS: dict[str, Callable[..., Trainer]] = {
    "meta": meta,
    "meta_members": meta_members,
    "meta_rates": lambda make, **kw: meta(make, **RATES, **kw),
    "meta_members_rates": lambda make, **kw: meta_members(make, **RATES, **kw),
    "ensemble": _stack(EnsembleTrainer),
    "ensemble_rates": _stack(EnsembleTrainer, lr=[0.01, 0.02]),
    "ensemble_decays": _stack(EnsembleTrainer, weight_decay=[0.1, 0.2]),
    "snapshot": _stack(SnapshotTrainer, members=2, schedule="cosine"),
    "swag": _stack(SWAGTrainer, members=2, start=0.25, rank=2, every=1),
    "per_sample": per_sample,
    "per_sample_noise": lambda make, **kw: per_sample(make, noise_multiplier=1.0, **kw),
    "per_sample_plain": lambda make, **kw: per_sample(make, max_norm=float("inf"), **kw),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01, weight_decay=0.5),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01, weight_decay=0.5),
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.01, momentum=0.9, weight_decay=0.5),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01, weight_decay=0.5),
}
LENGTH: dict[str, Any] = {"steps": 4, "eval_every": 4, "schedule": "constant", "progress": False}


def state(trainer: Trainer) -> dict[str, Tensor]:
    every = trained_parameters(trainer.module, trainer.loop.beside)
    return {name: value.detach().clone() for name, value in every.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", TRAINERS)
def test_a_parameter_without_a_part_stays(kind: str, optimizer: str) -> None:
    if kind == "ensemble_decays":
        made: Any = lambda ps: torch.optim.AdamW(ps, lr=0.01, weight_decay=0.0)  # noqa: E731
    else:
        made = OPTIMIZERS[optimizer]
    trainer = TRAINERS[kind](Net, optimizer=made, **LENGTH)
    before = state(trainer)
    trainer.fit()
    after = state(trainer)
    lean = TRAINERS[kind](lambda *args: Net(*args, spare=False), optimizer=made, **LENGTH)
    lean.fit()
    expected = state(lean)
    for name, value in after.items():
        if "spare" in name or "scale" in name:
            assert torch.equal(value, before[name]), name
        else:
            assert not torch.equal(value, before[name]), name
            if "noise" not in kind:  # whose draws follow one another
                torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["meta", "meta_rates", "ensemble", "per_sample"])
def test_a_resumed_run_skips_it_too(kind: str, tmp_path: Path) -> None:
    whole = TRAINERS[kind](Net, optimizer=OPTIMIZERS["adamw"], **LENGTH)
    whole.fit()
    first = TRAINERS[kind](
        Net, optimizer=OPTIMIZERS["adamw"], folder=tmp_path, **{**LENGTH, "steps": 2}
    )
    first.fit()
    second = TRAINERS[kind](Net, optimizer=OPTIMIZERS["adamw"], **LENGTH)
    second.resume(tmp_path / "checkpoints" / "last.pt")
    second.fit()
    for name, value in state(whole).items():
        assert torch.equal(value, state(second)[name]), name


def _frozen(*args: Any) -> nn.Module:
    return Net(*args).requires_grad_(False)


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_network_without_parameters_to_train_is_refused(kind: str) -> None:
    with pytest.raises(SettingError, match=r"^mod.*: (a parameter to (train|learn)|members that)"):
        TRAINERS[kind](_frozen, **LENGTH)


@pytest.mark.parametrize("make", [lambda: _frozen(1, 1), nn.Identity])
def test_a_learner_without_parameters_is_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(SettingError, match=r"^module='.*': a parameter to learn is needed"):
        MetaLearner(make())


class Cut(Net):
    """Nothing reaches a parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_network_that_detaches_is_refused(kind: str) -> None:
    with pytest.raises(SettingError, match=r"^loss_fn='no parameter reached'"):
        TRAINERS[kind](Cut, **LENGTH).fit()
