"""Private training at several ε beside training without privacy: one run of each, and no choice.

Rates were chosen beforehand by the validation split of seed 100, which no row has: a choice among
private runs would cost as much as all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from metalearn.data import ClassificationData
from metalearn.models import MLP
from metalearn.studies.rows import Rows, percent
from metalearn.trainers import PerSampleTrainer, PrivateTrainer

__all__ = ["train_privately"]

_DELTA = 1e-5
_RUN: dict[str, Any] = {
    "steps": 200, "batch_size": 256, "schedule": "constant", "clip": None, "progress": False,
    "eval_every": 200, "log_every": 200, "checkpoint_every": 200,
}  # fmt: skip


def train_privately(
    make: Callable[[int], ClassificationData],
    hidden: int,
    rates: Mapping[float | None, float],
    seed: int,
) -> Rows:
    """Each ε, and none.

    Args:
        make: data of a seed.
        hidden: units of the only hidden layer.
        rates: by ε, None without privacy, the learning rate.
        seed: of data, networks, and batches without privacy.
    """
    data, rows = make(seed), Rows()
    for epsilon, rate in rates.items():
        name = "without privacy" if epsilon is None else f"ε = {epsilon:g}"
        with rows.timed(name):
            trained = _trained(data, hidden, epsilon, rate, seed)
        chosen = f"rate {rate:g}"
        if epsilon is not None:
            chosen += f", σ {trained.objective.noise_multiplier:.2f}"
        rows.add(name, chosen, accuracy=percent(trained.test().headline()["test/accuracy"]))
    return rows


def _trained(
    data: ClassificationData, hidden: int, epsilon: float | None, rate: float, seed: int
) -> PerSampleTrainer | PrivateTrainer:
    """To the last step, gradients of samples clipped to 1; ordinary ones where ε is None."""
    model = MLP(data.input_shape, data.outputs, hidden=(hidden,), activation="tanh", seed=seed)
    sgd: Any = partial(torch.optim.SGD, lr=rate, momentum=0.9)
    common: Any = {"seed": seed, "optimizer": sgd, **_RUN}
    trainer: PerSampleTrainer | PrivateTrainer
    if epsilon is None:
        trainer = PerSampleTrainer(
            model, data, max_norm=float("inf"), diagnostics=(), monitor="accuracy", **common
        )
    else:
        trainer = PrivateTrainer(model, data, epsilon=epsilon, delta=_DELTA, **common)
    trainer.fit()
    return trainer
