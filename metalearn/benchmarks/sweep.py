"""A sweep of learning rates as one training of M members, against M trainings by the same trainer.

Axes: M members.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from metalearn.data import ClassificationData
from metalearn.models import MLP, Ensemble
from metalearn.trainers import EnsembleTrainer

__all__ = ["Sweep", "sweep_race"]


@dataclass(frozen=True)
class Sweep:
    """A sweep of learning rates on digits: seconds of training, validations included."""

    members: int
    steps: int
    at_once: float
    """One run of M members."""
    one_by_one: float
    """M runs of one member each."""


def sweep_race(data: ClassificationData, *, members: int = 32, steps: int = 300) -> Sweep:
    """The same sweep as one run and as M runs, one after the other."""
    rates = torch.logspace(-4, -1, members, dtype=torch.float64).tolist()

    def fit(chosen: Sequence[int]) -> float:
        make = partial(MLP, data.input_shape, data.outputs, hidden=(64, 64))
        model = Ensemble.from_factory(lambda seed: make(seed=seed), chosen)
        start = time.perf_counter()
        EnsembleTrainer(
            model, data, steps=steps, seeds=chosen, lr=[rates[i] for i in chosen], progress=False,
            optimizer=partial(torch.optim.Adam, fused=True),
        ).fit()  # fmt: skip
        return time.perf_counter() - start

    fit([0])  # loads what is loaded lazily
    at_once = fit(range(members))
    return Sweep(members, steps, at_once, sum(fit([index]) for index in range(members)))
