"""Predictions and scores of members on a split of labelled data.

Axes: M members, N samples of a split, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from metalearn.core.checks import module_takes
from metalearn.core.tree import check_tensors
from metalearn.core.vectorization import vmapped_or_looped
from metalearn.data.regression import SupervisedData
from metalearn.evaluation import (
    EnsembleReport,
    EnsembleStatistics,
    RegressionReport,
    RegressionStatistics,
)
from metalearn.models import Predictor
from metalearn.models.dropout import part_of_batch
from metalearn.ranks import Ranks
from metalearn.stretches import stretch
from metalearn.trainers.loop.stop_signal import StopSignal
from metalearn.trainers.supervised.member_planner import MemberPlanner
from metalearn.types import Split

__all__ = ["MemberLogits", "Predict", "SplitReport", "logits_of", "report_of", "shared_by"]

Predict = Callable[[Tensor], Tensor]
"""From inputs ``[N, ...]`` to outputs ``[M, N, C]``."""

SplitReport = EnsembleReport | RegressionReport

_SAMPLES_AT_A_TIME = 1024


def report_of(
    predict: Predict, data: SupervisedData, split: Split, *, members: int, device: torch.device
) -> SplitReport:
    """Scores of M members, and of their mean prediction or mixture."""
    statistics: EnsembleStatistics | RegressionStatistics
    if data.kind == "classification":
        statistics = EnsembleStatistics(members, data.outputs)
    else:
        statistics = RegressionStatistics(members, data.outputs)
    for outputs, targets in _predicted(predict, data, split, device):
        statistics.update(outputs, targets)
    return statistics.compute()


def logits_of(
    predict: Predict, data: SupervisedData, split: Split, *, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Outputs ``[M, N, C]`` and targets ``[N]`` or ``[N, D]`` of a split."""
    parts = list(_predicted(predict, data, split, device))
    return torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts])


def _predicted(
    predict: Predict, data: SupervisedData, split: Split, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    with stretch(split, data.size(split), "samples") as tell:
        for indices in torch.split(data.splits[split], _SAMPLES_AT_A_TIME):
            x, y = data.take(indices, device=device)
            yield predict(x), y
            tell(len(indices))


def shared_by(ranks: Ranks, predict: Predict, stop: StopSignal) -> Predict:
    """The same outputs, of which each rank computes those of some inputs; all come to it.

    There they hear of a signal to one of them, and stop.
    """
    if ranks.count == 1:
        return predict

    def joined(inputs: Tensor) -> Tensor:
        stop.agree()
        count, share = len(inputs), ranks.share
        if count < share.count:
            return predict(inputs)
        first, last = share.bounds(count)
        with part_of_batch(first, last - first):  # masks of dropout are those of all
            own = predict(inputs[first:last]).transpose(0, 1).contiguous()
        return ranks.joined(own, share.sizes(count)).transpose(0, 1)

    return joined


class MemberLogits:
    """Logits of members in evaluation mode, taken as their gradients are.

    Args:
        planner: of the engine.
        stop: ends predictions that a signal breaks off.
    """

    def __init__(self, planner: MemberPlanner, stop: StopSignal) -> None:
        self._planner, self._stop = planner, stop

    @torch.no_grad()
    def __call__(self, model: Predictor, inputs: Tensor) -> Tensor:
        """``[M, N, C]``."""
        self._stop.check()
        by = partial(model.eval(), engine=self._planner.forward_engine)
        looped = partial(model, engine="loop")
        run = partial(vmapped_or_looped, by, looped) if self._planner.undecided else by
        check_tensors(inputs, "inputs")
        with module_takes("inputs", inputs):
            logits: Tensor = run(inputs.to(self._planner.device))
        return logits
