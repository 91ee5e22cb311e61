"""Trainers of networks that vmap cannot take.

Axes: M members, N samples.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core.vectorization import VectorizationError
from metalearn.errors import SettingError
from metalearn.models import Ensemble
from tests.support.builders import ensemble_trainer
from tests.support.diagnostic_cases import per_sample


class Reading(nn.Module):
    """A linear layer whose output is scaled by a value that is read, or by the same unread."""

    def __init__(self, inputs: int, reads: bool, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layer = nn.Linear(inputs, 3)
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        scale = self.layer.bias.detach()[0].abs() + 1
        if self.reads:
            scale = float(scale) + 0 * float(x.sum())
        return self.layer(x.flatten(1)) * scale


class Recurrent(nn.Module):
    """An LSTM over the inputs, one number a step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x[..., None])[0][:, -1])


@pytest.mark.parametrize("max_norm", [0.5, math.inf])
def test_samples_one_after_another_train_the_same(max_norm: float) -> None:
    settings: dict[str, Any] = {"max_norm": max_norm, "diagnostics": None, "diagnostics_every": 2}
    found = per_sample(model=Reading(4, reads=False), method="loop", **settings)
    wanted = per_sample(model=Reading(4, reads=False), **settings)
    for trainer in (found, wanted):
        trainer.fit()
    for name, value in wanted.params.items():
        torch.testing.assert_close(found.params[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [Recurrent, lambda: Reading(4, reads=True)])
@pytest.mark.parametrize("max_norm", [0.5, math.inf])
def test_a_loop_over_samples_trains_what_vmap_cannot_take(make: Any, max_norm: float) -> None:
    trainer = per_sample(model=make(), method="loop", max_norm=max_norm, diagnostics=None)
    before = {n: v.clone() for n, v in trainer.params.items()}
    trainer.fit()
    assert all(not torch.equal(v, before[n]) for n, v in trainer.params.items())


def test_other_methods_name_the_loop() -> None:
    with pytest.raises(SettingError, match="method='loop'"):
        per_sample(model=Recurrent())
    with pytest.raises(VectorizationError, match="it reads a value of a tensor.*method='loop'"):
        per_sample(model=Reading(4, reads=True)).gradient(0)
    with pytest.raises(SettingError, match="method='one': one of layers, vmap, loop is needed"):
        per_sample(method="one")


def test_an_ensemble_chooses_the_loop_and_trains_the_same() -> None:
    trainers = []
    for reads in (True, False):
        members = [Reading(16, reads, seed) for seed in range(2)]
        model = Ensemble.from_modules(members)
        engine = "auto" if reads else "batched"
        trainers.append(ensemble_trainer(model=model, engine=engine, diagnostics_every=2))
    for trainer in trainers:
        trainer.fit()
    found = trainers[0]
    assert found.plan.engine == "loop"
    assert "vmap cannot take the networks: it reads a value" in str(found.plan)
    ours, theirs = (dict(t.ensemble.named_parameters()) for t in trainers)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)


def test_an_ensemble_that_is_told_to_be_batched_names_the_loop() -> None:
    model = Ensemble.from_modules([Reading(16, True, seed) for seed in range(2)])
    with pytest.raises(VectorizationError, match="engine='loop' can"):
        ensemble_trainer(model=model, engine="batched").fit()
