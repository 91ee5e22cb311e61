"""How members and the ensemble of them do on a split: the validations of their training.

Axes: M members, V validations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from metalearn.models import Ensemble, Predictor
from metalearn.schema import Kind, list_of, mapping, number
from metalearn.tracking import Tracker
from metalearn.trainers.loop.protocols import Evaluation
from metalearn.trainers.supervised.ensemble_figures import draw_validation
from metalearn.trainers.supervised.model_evaluation import Monitor
from metalearn.trainers.supervised.predictions import SplitReport

__all__ = ["EnsembleEvaluator", "Validation", "spread"]


def _as_they_stand(ensemble: Ensemble) -> Predictor:
    return ensemble


@dataclass(frozen=True)
class Validation:
    """What of an ensemble that is trained is validated, and which state is kept for it."""

    scored: Callable[[Ensemble], Predictor] = _as_they_stand
    """What validation scores; the members as they stand by default."""
    together: bool = False
    """Whether what is scored shares weights, so that one score, the mean, decides for all."""
    kept: Literal["best", "newest"] = "best"
    """See `Population`."""
    skipped: bool = False
    """Whether nothing is scored, and the last state counts as the best."""


class EnsembleEvaluator:
    """Scores members and ensemble on the validation split.

    Args:
        report: of the validation split, as the members stand.
        scores: what is shown of each member: a name, and what the report calls it.
        monitor: which of these decides which state of a member is best.
        together: see `Validation`.
        member_curves: record every member's curve as well.
    """

    def __init__(
        self,
        report: Callable[[], SplitReport],
        scores: Mapping[str, str],
        monitor: Monitor,
        *,
        together: bool,
        member_curves: bool,
    ) -> None:
        self.report, self.scores, self.together = report, scores, together
        self.member_curves = member_curves
        self.monitor = f"validation/member_{monitor}"
        self.larger_is_better = monitor == "accuracy"
        self._history: dict[str, list[list[float]]] = {name: [] for name in ("step", *scores)}

    @property
    def bands(self) -> Mapping[str, Sequence[str]]:
        """Of members: median and extremes."""
        names = [f"validation/member_{name}" for name in sorted(self.scores)]
        names += ["train/member_loss", "train/member_gradient_norm"]
        return {"members: median and extremes": names}

    def __call__(self, step: int) -> Evaluation:
        """Scores of each member and of the ensemble; figures of both."""
        report = self.report()
        members = {name: getattr(report.members, score) for name, score in self.scores.items()}
        numbers = {f"validation/{name}": value for name, value in report.ensemble().items()}
        for name, values in members.items():
            numbers |= spread(f"validation/member_{name}", values)
        scores = members["accuracy" if self.larger_is_better else "loss"]
        if self.together:
            scores = scores.mean(0, keepdim=True)

        def draw(tracker: Tracker, step: int) -> None:
            self._draw(report, members, tracker, step)

        return Evaluation(numbers, scores, draw)

    def state(self) -> dict[str, Any]:
        """Validations so far, for figures of the course."""
        return {"history": self._history}

    def state_kinds(self) -> list[Kind]:
        """The same."""
        rows = list_of(list_of(number(nan=True)))
        return [mapping({"history": mapping(dict.fromkeys(self._history, rows))})]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self._history = state["history"]

    def _draw(
        self,
        report: SplitReport,
        members: Mapping[str, Tensor],
        tracker: Tracker,
        step: int,
    ) -> None:
        """Leave curves and figures, and remember the validation for the next ones."""
        if self.member_curves:
            for name, values in members.items():
                rows = {f"member_{i:02d}": float(v) for i, v in enumerate(values)}
                tracker.curves(step, f"validation_{name}_by_member", rows)
        self._history["step"].append([float(step)])
        for name, values in members.items():
            self._history[name].append(values.tolist())
        draw_validation(tracker, step, report, self._history)


def spread(name: str, values: Tensor) -> dict[str, float]:
    """Median and extremes of the values of M members, as ``<name>``, ``_low`` and ``_high``."""
    return {
        name: float(values.median()),
        f"{name}_low": float(values.min()),
        f"{name}_high": float(values.max()),
    }
