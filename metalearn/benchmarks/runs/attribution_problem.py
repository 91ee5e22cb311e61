"""What methods of attribution are given: the run of a trainer, its states, targets and subsets.

Axes: K steps, N examples, R targets, M subsets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from metalearn.attribution import TrainingRun, random_subsets, training_run
from metalearn.attribution.exact import spread_steps
from metalearn.benchmarks.runs.weighted_run import WeightedRun
from metalearn.data import ClassificationData, digits_data
from metalearn.models import MLP, Ensemble
from metalearn.trainers import EnsembleTrainer

__all__ = ["AttributionProblem"]


@dataclass(frozen=True)
class AttributionProblem:
    """An MLP with GELU on digits: momentum, a cosine schedule; test samples are the targets."""

    steps: int = 400
    examples: int = 1000
    targets: int = 20
    subsets: int = 64
    left_out: float = 0.05
    batch: int = 100
    hidden: tuple[int, ...] = (64, 64)
    checkpoints: int = 8
    """Of TracIn."""
    projection: int = 512
    """Numbers that TRAK keeps of a gradient."""
    damping: float = 0.05

    @cached_property
    def data(self) -> ClassificationData:
        """Digits, with so many training examples."""
        data = digits_data(seed=0)
        return replace(data, splits={**data.splits, "train": data.splits["train"][: self.examples]})

    @cached_property
    def samples(self) -> tuple[Tensor, Tensor]:
        """Inputs and classes of the R targets."""
        x, y = self.data.part("test")
        return x[: self.targets], y[: self.targets]

    @cached_property
    def weights(self) -> Tensor:
        """``[M, N]``, of subsets that lack some of the examples."""
        count = len(self.data.splits["train"])
        return random_subsets(self.subsets, count, leave_out=self.left_out)

    @property
    def settings(self) -> dict[str, Any]:
        """Of the trainer, and of retraining."""
        return {
            "steps": self.steps,
            "batch_size": self.batch,
            "schedule": "cosine",
            "optimizer": self.optimizer,
            "progress": False,
        }

    @property
    def optimizer(self) -> Callable[..., torch.optim.Optimizer]:
        """SGD with momentum."""
        return partial(torch.optim.SGD, lr=0.1, momentum=0.9)

    @property
    def network(self) -> MLP:
        """Before its training."""
        hidden = tuple(self.hidden)
        return MLP((1, 8, 8), 10, hidden=hidden, activation="gelu", seed=0)

    @cached_property
    def run(self) -> TrainingRun:
        """The training as a function of weights on its examples."""
        ensemble = Ensemble.from_modules([self.network])
        how = {**self.settings, "eval_every": self.steps, "log_every": self.steps}
        return training_run(EnsembleTrainer(ensemble, self.data, **how))

    @cached_property
    def written(self) -> WeightedRun:
        """The same for loops that are written out."""
        rows = tuple(self.run.batch(k)[2] for k in range(self.steps))
        return WeightedRun(
            self.network, self.data.part("train"), rows, tuple(self.run.rates.tolist()),
            self.samples,
        )  # fmt: skip

    @cached_property
    def states(self) -> tuple[list[dict[str, Tensor]], list[float]]:
        """Parameters along the run, the last at its end, and the sum of rates before each."""
        places = spread_steps(self.steps, self.checkpoints + 1)[1:]
        states = [dict(params) for _, params in self.run.states(places)]
        ends = zip([0, *places[:-1]], places)
        return states, [float(self.run.rates[a:b].sum()) for a, b in ends]

    @property
    def trained(self) -> dict[str, Tensor]:
        """Parameters at the end of the run."""
        return self.states[0][-1]
