"""Further numbers by name, functions of outputs and targets, at validations and tests.

Axes: M members, N samples of a split, C outputs.
"""

from __future__ import annotations

import numbers as kinds
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError
from metalearn.evaluation import EnsembleReport, RegressionReport, RegressionScores, Scores
from metalearn.schema import Kind
from metalearn.signatures import takes_arguments
from metalearn.trainers.loop.protocols import Evaluation, Evaluator
from metalearn.trainers.supervised.ensemble_evaluation import spread
from metalearn.trainers.supervised.losses import SupervisedLoss
from metalearn.trainers.supervised.model_evaluation import Monitor
from metalearn.trainers.supervised.predictions import Predict, logits_of

__all__ = ["MeasuringEvaluator", "Metrics", "check_metrics", "measured", "with_measures"]

Metrics = Mapping[str, Callable[[Tensor, Tensor], Any]]
"""By name, functions from outputs ``[M, N, C]`` and targets to a number."""

_REPORTS = (Scores, RegressionScores, EnsembleReport, RegressionReport)
_TAKEN = {field.name for report in _REPORTS for field in fields(report)} | {"loss", "objective"}


def check_metrics(metrics: Metrics | None) -> Metrics:
    """The metrics, none where there are none.

    Raises:
        SettingError: no mapping of names to functions, or the name of a score.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise SettingError("metrics", metrics, "a mapping from names to functions is needed")
    for name, function in metrics.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise SettingError("metrics", name, "a name of letters, digits and _ is needed")
        if name in _TAKEN or name.startswith(("member_", "auroc_")):
            raise SettingError("metrics", name, "another name is needed: scores are called so")
        if not callable(function) or not takes_arguments(function, 2):
            accepted = "a function of outputs [M, N, C] and targets is needed"
            raise SettingError(f"metrics[{name!r}]", function, accepted)
    return dict(metrics)


@torch.no_grad()
def measured(metrics: Metrics, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """The number of each metric; each gets copies, which it may write into.

    Args:
        metrics: see `Metrics`.
        outputs: ``[M, N, C]``.
        targets: ``[N]`` or ``[N, D]``.

    Raises:
        SettingError: a metric that gives something else than a number.
    """
    found = {}
    for name, function in metrics.items():
        value = function(outputs.clone(), targets.clone())
        if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
            value = value.item()
        if not isinstance(value, kinds.Real):
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise SettingError(f"metrics[{name!r}]", shape, "one number is needed")
        found[name] = float(value)
    return found


def with_measures(
    scores: Evaluator,
    predict: Predict,
    data: SupervisedData,
    *,
    metrics: Metrics,
    loss: SupervisedLoss,
    monitor: Monitor,
    device: torch.device,
    alone: bool = False,
    together: bool = False,
) -> Evaluator:
    """An evaluator that measures the metrics too, and by a loss of one's own decides what is best.

    Where there are neither it is ``scores`` itself. Arguments as of `MeasuringEvaluator`, but
    ``monitor``, which leaves the decision to ``scores`` where it is ``"accuracy"``.
    """
    decides = loss if loss.own and monitor == "loss" else None
    if not metrics and decides is None:
        return scores
    outputs = partial(logits_of, predict, data, "validation", device=device)
    return MeasuringEvaluator(scores, outputs, metrics, decides, alone=alone, together=together)


class MeasuringEvaluator:
    """An evaluator with further numbers, and a loss of the user's own that decides what is best.

    The loss of a member is that of the whole split, recorded as ``validation/objective`` of one
    module and as ``validation/member_objective`` of members.

    Args:
        scores: the evaluator.
        outputs: gives outputs ``[M, N, C]`` and targets of the validation split.
        metrics: see `Metrics`.
        decides: the loss by which the best is chosen; None leaves it to ``scores``.
        alone: whether it is one module's.
        together: whether one score, the mean, decides for all members.
    """

    def __init__(
        self,
        scores: Evaluator,
        outputs: Callable[[], tuple[Tensor, Tensor]],
        metrics: Metrics,
        decides: SupervisedLoss | None = None,
        *,
        alone: bool = False,
        together: bool = False,
    ) -> None:
        self.scores, self.outputs, self.metrics = scores, outputs, metrics
        self.decides, self.alone, self.together = decides, alone, together
        self._objective = "validation/objective" if alone else "validation/member_objective"
        self.monitor = scores.monitor if decides is None else self._objective
        self.larger_is_better = decides is None and scores.larger_is_better

    @property
    def bands(self) -> Mapping[str, Sequence[str]]:
        """Those of the scores, and of the loss of members."""
        found = dict(self.scores.bands)
        if self.decides is not None and not self.alone:
            for about, names in found.items():
                found[about] = [*names, self._objective]
        return found

    def __call__(self, step: int) -> Evaluation:
        """The scores, and what is measured beside them."""
        found = self.scores(step)
        outputs, targets = self.outputs()
        further = measured(self.metrics, outputs, targets)
        numbers = {**found.numbers} | {f"validation/{n}": value for n, value in further.items()}
        if self.decides is None:
            return replace(found, numbers=numbers)
        with torch.no_grad():
            losses = torch.stack([self.decides.mean(one, targets) for one in outputs])
        losses = losses.cpu().double()
        every = spread(self._objective, losses)
        numbers |= {self._objective: float(losses)} if self.alone else every
        scores = losses.mean(0, keepdim=True) if self.together else losses
        return replace(found, numbers=numbers, scores=scores)

    def state(self) -> dict[str, Any]:
        """That of the scores."""
        return self.scores.state()

    def state_kinds(self) -> list[Kind]:
        """Those of the scores."""
        return self.scores.state_kinds()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self.scores.load_state(state)
