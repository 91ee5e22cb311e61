"""Ordinary trainings that a study compares with: candidates as one stack, chosen by validation.

Axes: M candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from metalearn.data import ClassificationData
from metalearn.models import MLP, Ensemble
from metalearn.trainers import EnsembleTrainer, Trainer
from metalearn.trainers.loop.stop_signal import Stopped

__all__ = ["Candidate", "fit_to_the_end", "made_network", "sgd_of", "trained_stack"]


@dataclass(frozen=True)
class Candidate:
    """The best of a stack."""

    rate: float
    validation: float
    """What it was chosen by: smaller is better."""
    accuracy: float
    """Of the test part, a share."""
    nll: float


def made_network(data: ClassificationData, hidden: Sequence[int]) -> Callable[[int], nn.Module]:
    """Makes smooth MLPs for the data from seeds."""
    return lambda seed: MLP(
        data.input_shape, data.outputs, hidden=list(hidden), activation="gelu", seed=seed
    )


def sgd_of(momentum: float = 0.9) -> Callable[..., torch.optim.Optimizer]:
    """Makes the optimiser; rates are those of members."""
    return partial(torch.optim.SGD, lr=0.1, momentum=momentum)


def fit_to_the_end(trainer: Trainer) -> None:
    """Train, and put the best state into the module.

    Raises:
        Stopped: a signal asked for it; what was trained till then is of no use to a study.
    """
    if trainer.fit().signal is not None:
        raise Stopped
    trainer.load_best()


def trained_stack(
    network: Callable[[int], nn.Module],
    data: ClassificationData,
    rates: Sequence[float],
    *,
    seeds: Sequence[int],
    momentum: float = 0.9,
    **settings: Any,
) -> list[Candidate]:
    """Networks of several rates, or seeds, trained at once; each at its best validation.

    Args:
        network: makes one of a seed.
        data: validation chooses the state of each.
        rates: of each of M.
        seeds: of each network and its order of batches.
        momentum: of all.
        settings: others of `EnsembleTrainer`; with ``eval_every`` equal to ``steps`` the state is
            the last.
    """
    trainer = EnsembleTrainer(
        Ensemble.from_factory(network, list(seeds)), data, lr=list(rates), seeds=list(seeds),
        optimizer=sgd_of(momentum), clip=None, deterministic=True, progress=False, **settings,
    )  # fmt: skip
    fit_to_the_end(trainer)
    sign = -1 if trainer.larger_is_better else 1
    values = (sign * trainer.loop.population.best_values).tolist()
    scores = trainer.test().member_headlines()
    return [
        Candidate(rate, value, score["test/accuracy"], score["test/nll"])
        for rate, value, score in zip(rates, values, scores)
    ]
