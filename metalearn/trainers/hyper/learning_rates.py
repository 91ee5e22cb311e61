"""A learnt learning rate for each step of a run.

Axes: K steps of a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.tracking import schedule_figure
from metalearn.trainers.hyper.kinds import HyperModule, RunSetup, RunValues

__all__ = ["LearntSchedule"]


class LearntSchedule(HyperModule):
    """Learning rates η ``[K]``, η_k = exp(a_k), and with ``momentum`` that of ``sgd``, σ(b).

    Args:
        setup: the ordinary run, whose rates they start as.
        momentum: whether it is learnt too, one for all steps.

    Raises:
        SettingError: a rate of 0 to start from; momentum of a run that has none.

    Source: Maclaurin et al., "Gradient-based Hyperparameter Optimization through Reversible
    Learning", ICML 2015.
    """

    @checked
    def __init__(self, setup: RunSetup, *, momentum: bool = False) -> None:
        super().__init__(setup)
        if not bool((setup.rates > 0).all()):
            accepted = "rates above 0 are needed, to be learnt as their logarithms"
            raise SettingError("rates", float(setup.rates.min()), accepted)
        if momentum and not (setup.optimizer == "sgd" and setup.momentum > 0):
            accepted = "inner.optimizer='sgd' with a momentum above 0 to start from is needed"
            raise SettingError("momentum", momentum, accepted)
        self.log_rates = nn.Parameter(setup.rates.log())
        if momentum:
            free = math.log(setup.momentum / (1 - setup.momentum))
            self.momentum_score = nn.Parameter(setup.like.new_tensor(free))

    def values(self, raw: Mapping[str, Tensor]) -> RunValues:
        """``lr`` ``[K]``, and ``momentum`` where it is learnt."""
        found = {"lr": raw["log_rates"].exp()}
        if "momentum_score" in raw:
            found["momentum"] = torch.sigmoid(raw["momentum_score"])
        return RunValues({}, found)

    def records(self, values: RunValues) -> dict[str, float]:
        """The first and the last rate, their mean and the largest; momentum."""
        rates = values.in_optimizer["lr"]
        ends = {"first": rates[0], "last": rates[-1], "mean": rates.mean(), "largest": rates.max()}
        found = {f"rate/{name}": float(value) for name, value in ends.items()}
        if "momentum" in values.in_optimizer:
            found["momentum"] = float(values.in_optimizer["momentum"])
        return found

    def figure(self, values: RunValues, plain: RunValues, title: str) -> Figure:
        """The rate over the steps of a run."""
        rates = {"learnt": values.in_optimizer["lr"], "at the start": plain.in_optimizer["lr"]}
        return schedule_figure(rates, title=title)
