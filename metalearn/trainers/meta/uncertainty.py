"""How far the probabilities of a task's queries can be trusted, after the last inner step.

Axes: T tasks, N query samples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import NonFiniteError, SettingError
from metalearn.evaluation import (
    ConformalRule,
    area_under_risk_coverage,
    expected_calibration_error,
    fit_conformal,
    set_scores,
)
from metalearn.evaluation.conformal import check_conformal
from metalearn.percent import percent
from metalearn.signatures import known_fields
from metalearn.trainers.meta.scores import QueryOutcomes, mean_interval

__all__ = [
    "CalibratedSets",
    "ConformalSets",
    "SetReport",
    "check_has_classes",
    "task_calibration",
    "task_risk_coverage",
]


@known_fields
@dataclass(frozen=True)
class ConformalSets:
    """Sets of classes that hold the right one as often as is asked.

    Attributes:
        coverage: how often, in (0, 1).
        rule: which sets, see `metalearn.evaluation.fit_conformal`.
        penalty, free_ranks: of raps.

    Raises:
        SettingError: a value that is none of these.
    """

    coverage: float = 0.9
    rule: ConformalRule = "thr"
    penalty: float = 0.01
    free_ranks: int = 1

    def __post_init__(self) -> None:
        check_conformal(self.coverage, self.rule, self.penalty, self.free_ranks)


@dataclass(frozen=True)
class SetReport:
    """Means and half-widths of the 95 % interval over tasks; each ``[2]``."""

    asked: ConformalSets
    coverage: Tensor
    """Share of a task's queries whose set holds the right class."""
    size: Tensor
    """Classes in a set."""

    def as_json(self) -> dict[str, Any]:
        """All of it, plain."""
        found = {"coverage": self.coverage, "size": self.size}
        return {"asked": asdict(self.asked)} | {
            name: {"mean": float(mean), "interval95": float(half)}
            for name, (mean, half) in found.items()
        }

    def line(self) -> str:
        """In words."""
        (share, near), (size, about) = self.coverage.tolist(), self.size.tolist()
        how = f"{self.asked.rule}, {100 * self.asked.coverage:g} % asked"
        return (
            f"  conformal sets ({how}): {size:.2f} ± {about:.2f} classes, "
            f"the right one among them {percent(share)} ± {percent(near)}"
        )


class CalibratedSets:
    """Conformal sets, calibrated on the queries of all given tasks together, padding left out.

    Args:
        asked: which sets.
        queries: of tasks that nothing was chosen by.

    Raises:
        NonFiniteError: predictions that are NaN.
    """

    def __init__(self, asked: ConformalSets, queries: QueryOutcomes) -> None:
        real = queries.labels >= 0
        if queries.probabilities[real].isnan().any():
            raise NonFiniteError("predictions that sets are to be calibrated on are NaN")
        self.asked = asked
        self.predictor = fit_conformal(
            queries.probabilities[real], queries.labels[real], **asdict(asked)
        )

    def report(self, queries: QueryOutcomes) -> SetReport:
        """How often the sets of T tasks hold the right class; NaN where a prediction is NaN."""
        lost = queries.probabilities.isnan().flatten(1).any(-1)
        probabilities = queries.probabilities.nan_to_num(0.0)
        held = self.predictor.sets(probabilities) & _there(probabilities, queries.labels)
        rows = zip(held, queries.labels, queries.labels >= 0)
        scores = [set_scores(sets[real], labels[real]) for sets, labels, real in rows]
        ends = []
        for name in ("coverage", "size"):
            values = torch.stack([getattr(score, name) for score in scores]).cpu()
            ends.append(torch.stack(mean_interval(values.masked_fill(lost.cpu(), math.nan))))
        return SetReport(self.asked, *ends)


def _there(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Bool ``[T, 1, C]``: classes that a task has; one that it lacks is none that a set can hold.

    That is one which no query is of, and all have the probability 0 of.
    """
    classes = torch.arange(probabilities.shape[-1], device=labels.device)
    return ((probabilities > 0) | (labels[..., None] == classes)).any(1, keepdim=True)


def check_has_classes(queries: QueryOutcomes | None, asked: ConformalSets) -> None:
    """Refuse sets of classes for scores of a regression.

    Raises:
        SettingError: names them.
    """
    if queries is None:
        accepted = "None is needed: a regression has no classes"
        raise SettingError("conformal", asked, accepted)


def task_calibration(queries: QueryOutcomes) -> Tensor:
    """``[T]``: expected calibration error over a task's queries, padding left out."""
    return _each_task(expected_calibration_error, queries)


def task_risk_coverage(queries: QueryOutcomes) -> Tensor:
    """``[T]``: area under the risk–coverage curve of a task's queries, padding left out."""
    return _each_task(area_under_risk_coverage, queries)


def _each_task(score: Callable[[Tensor, Tensor], Tensor], queries: QueryOutcomes) -> Tensor:
    confidences, predicted = queries.probabilities.max(-1)
    hits, real = predicted == queries.labels, queries.labels >= 0
    if real.all():
        return score(confidences, hits)
    return torch.stack([score(c[kept], h[kept]) for c, h, kept in zip(confidences, hits, real)])
