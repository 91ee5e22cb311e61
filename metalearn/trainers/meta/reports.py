"""Scores over many tasks as means with intervals: for records, and as the report of a test.

Axes: M members, K inner steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.percent import decimals, percent
from metalearn.reprs import counted
from metalearn.trainers.meaning import of_adaptation
from metalearn.trainers.meta.by_set import PartReport, with_half
from metalearn.trainers.meta.normalization import Normalization
from metalearn.trainers.meta.scores import MemberScores, TaskScores, mean_interval
from metalearn.trainers.meta.uncertainty import (
    CalibratedSets,
    SetReport,
    task_calibration,
    task_risk_coverage,
)

__all__ = ["MemberReport", "TestReport", "by_step", "score_numbers", "task_report"]


@dataclass(frozen=True)
class TestReport:
    """Mean and half-width of the 95 % interval over tasks, at every inner step 0..K."""

    tasks: int
    losses: Tensor
    """``[2, K+1]``: mean, half-width."""
    accuracies: Tensor | None
    """``[2, K+1]``; None for regression."""
    members: MemberReport | None = None
    """Of an ensemble, whose mean prediction the numbers above are of."""
    inductive: bool = False
    """Whether each query was predicted alone."""
    normalization: Normalization | None = None
    """What the scores were normalised with, where that is known."""
    calibration: Tensor | None = None
    """``[2]``: expected calibration error over a task's queries after K steps; None for
    regression."""
    risk_coverage: Tensor | None = None
    """``[2]``: area under the risk–coverage curve of the same (AURC)."""
    sets: SetReport | None = None
    """Of conformal sets, where they were asked for."""
    by_set: Mapping[str, PartReport] | None = None
    """Of a mixture, the scores of the tasks of each data set."""

    def as_json(self) -> dict[str, Any]:
        """Mean and half-width of the 95 % interval at each inner step, and those of members."""
        found: dict[str, Any] = {"tasks": self.tasks}
        if self.normalization is not None:
            found["normalization"] = self.normalization.name
            found["queries_share_statistics"] = self.normalization.shared
        for name, values in (("loss", self.losses), ("accuracy", self.accuracies)):
            if values is not None:
                found[name] = [
                    {"inner_step": k, "mean": float(m), "interval95": float(h)}
                    for k, (m, h) in enumerate(values.T)
                ]
        if self.members is not None:
            found |= self.members.as_json()
        for name, values in (("calibration", self.calibration), ("aurc", self.risk_coverage)):
            if values is not None:
                found[name] = _ends(values)
        if self.by_set is not None:
            found["by_set"] = {name: part.as_json() for name, part in self.by_set.items()}
        return found if self.sets is None else found | {"sets": self.sets.as_json()}

    def headline(self) -> dict[str, float]:
        """The score after the last inner step."""
        name, values = self._score
        return {self._headline(name): float(values[0, -1])}

    def member_headlines(self) -> list[dict[str, float]]:
        """The same of each member alone."""
        if self.members is None:
            return []
        name, values = self.members.score
        return [{self._headline(name): float(row[0, -1])} for row in values]

    def lines(self, name: str) -> list[str]:
        """Mean ± 95 % interval over tasks at each inner step; one line where there are none."""
        score, values = self._score
        title = f"{name}: {score} on {counted(self.tasks, 'task')}, "
        title += "mean ± 95 % interval" if self.tasks > 1 else "which has no interval"
        ends = [(_four(mean), _four(half)) for mean, half in values.T.tolist()]
        if score == "accuracy":
            ends = [(f"{percent(mean):>7}", percent(half)) for mean, half in values.T.tolist()]
        shown = [with_half(mean, half, self.tasks) for mean, half in ends]
        if len(shown) == 1:
            lines = [title, f"  {shown[0].strip()}"]
        else:
            plural = [" " if k == 1 else "s" for k in range(len(shown))]
            steps = [f"  after {k} inner step{end}" for k, end in enumerate(plural)]
            lines = [title, *(f"{step}  {row}" for step, row in zip(steps, shown))]
        if self.normalization is not None:
            lines.insert(1, f"  normalisation: {self.normalization}")
        if self.members is not None:
            lines += [*self.members.lines(), *self._uncertainty()]
        lines += [part.line(set_name) for set_name, part in (self.by_set or {}).items()]
        return lines if self.sets is None else [*lines, self.sets.line()]

    def meaning(self) -> str:
        """Whether adaptation helps; without inner steps, what the interval is."""
        name, values = self._score
        if values.shape[1] < 2:
            alarm = (
                "an accuracy near 1/way" if name == "accuracy" else "a loss like an untrained one's"
            )
            return (
                "If tasks are many, 95 of 100 such intervals hold the mean over all tasks of the "
                f"kind; {alarm} would be alarming."
            )
        (before, near), (after, about) = values.T[0].tolist(), values.T[-1].tolist()
        return of_adaptation((before, near), (after, about), larger_is_better=name == "accuracy")

    def _uncertainty(self) -> list[str]:
        """Calibration and risk, in words."""
        if self.calibration is None or self.risk_coverage is None:
            return []
        error, area = (
            with_half(_four(float(mean)), _four(float(half)), self.tasks)
            for mean, half in (self.calibration, self.risk_coverage)
        )
        return [
            f"  calibration error over a task's queries: {error}",
            f"  area under their risk–coverage curve: {area}",
        ]

    def _headline(self, name: str) -> str:
        return f"test/inductive_{name}" if self.inductive else f"test/{name}"

    @property
    def _score(self) -> tuple[str, Tensor]:
        return _score(self.losses, self.accuracies)


@dataclass(frozen=True)
class MemberReport:
    """What an ensemble of learners knows beside the scores of its mean prediction."""

    losses: Tensor
    """``[M, 2, K+1]``: mean, half-width."""
    accuracies: Tensor | None
    """``[M, 2, K+1]``; None for regression."""
    epistemic: Tensor
    """``[2]``: mutual information of prediction and member (nats), or variance between members, of
    a task after K steps."""
    calibration: Tensor | None
    """``[2]``: expected calibration error over the queries of a task; None for regression."""

    @property
    def score(self) -> tuple[str, Tensor]:
        """``"accuracy"`` or ``"loss"``, and its values ``[M, 2, K+1]``."""
        return _score(self.losses, self.accuracies)

    def as_json(self) -> dict[str, Any]:
        """Of each member after adaptation, and what they do not agree on."""
        name, values = self.score
        found: dict[str, Any] = {"members": [{name: _ends(row[:, -1])} for row in values]}
        found["epistemic"] = _ends(self.epistemic)
        return found

    def lines(self) -> list[str]:
        """The members alone, and what they do not agree on, in words."""
        name, values = self.score
        each, regression = values[:, 0, -1], name == "loss"
        ends = (each.median(), each.min(), each.max())
        median, low, high = (_four(float(v)) if regression else percent(float(v)) for v in ends)
        lines = [f"  of its {len(each)} members alone: median {median}, {low} to {high}"]
        what = "variance between members" if regression else "mutual information, nats"
        mean, half = self.epistemic.tolist()
        return [*lines, f"  {what}: {_four(mean)} ± {_four(half)} a task"]


def _score(losses: Tensor, accuracies: Tensor | None) -> tuple[str, Tensor]:
    return ("loss", losses) if accuracies is None else ("accuracy", accuracies)


def _four(value: float) -> str:
    return decimals(value, ".4f")


def _ends(values: Tensor) -> dict[str, float]:
    return {"mean": float(values[0]), "interval95": float(values[1])}


def task_report(
    scores: TaskScores,
    normalization: Normalization | None = None,
    *,
    inductive: bool = False,
    sets: CalibratedSets | None = None,
    parts: Mapping[str, PartReport] | None = None,
) -> TestReport:
    """Mean and half-width of the 95 % interval over the tasks.

    ``inductive`` says what they are, ``parts`` what they are of the sets of a mixture.
    """
    found, accuracies, queries = scores.members, scores.accuracies, scores.queries
    members = None
    if found is not None:
        calibration = found.calibration
        members = MemberReport(
            _intervals(found.losses),
            None if found.accuracies is None else _intervals(found.accuracies),
            _interval(found.epistemic),
            None if calibration is None else _interval(calibration),
        )
    return TestReport(
        len(scores.losses),
        _interval(scores.losses),
        None if accuracies is None else _interval(accuracies),
        members,
        inductive,
        normalization,
        None if queries is None else _interval(task_calibration(queries)),
        None if queries is None else _interval(task_risk_coverage(queries)),
        None if queries is None or sets is None else sets.report(queries),
        parts,
    )


def _interval(values: Tensor) -> Tensor:
    """``[T, ...]`` to mean and half-width ``[2, ...]``."""
    return torch.stack(mean_interval(values)).cpu()


def _intervals(values: Tensor) -> Tensor:
    """``[T, M, K+1]`` to means and half-widths ``[M, 2, K+1]``."""
    return torch.stack(mean_interval(values), 1).cpu()


def by_step(scores: TaskScores) -> dict[str, float]:
    """The score at each inner step: accuracy, or loss for regression."""
    values, name = (scores.losses, "loss")
    if scores.accuracies is not None:
        values, name = scores.accuracies, "accuracy"
    return {f"{name}_{k}": float(mean) for k, mean in enumerate(values.mean(0))}


def score_numbers(prefix: str, scores: TaskScores) -> dict[str, float]:
    """Means before and after adaptation, and the ends of their 95 % intervals.

    Args:
        prefix: of the names, such as ``"validation/"``.
        scores: of tasks.
    """
    numbers: dict[str, float] = {}
    for name, values in (("loss", scores.losses), ("accuracy", scores.accuracies)):
        if values is None:
            continue
        mean, half = mean_interval(values)
        for when, k in (("before", 0), ("after", -1)):
            centre, width = float(mean[k]), float(half[k])
            key = f"{prefix}{name}_{when}"
            numbers |= {key: centre, f"{key}_low": centre - width, f"{key}_high": centre + width}
    return numbers | _member_numbers(prefix, scores.members)


def _member_numbers(prefix: str, members: MemberScores | None) -> dict[str, float]:
    """Median and extremes of members after adaptation, and what they do not agree on."""
    if members is None:
        return {}
    numbers = {f"{prefix}epistemic": float(members.epistemic.mean())}
    if members.calibration is not None:
        numbers[f"{prefix}calibration_error"] = float(members.calibration.mean())
    for name, values in (("loss", members.losses), ("accuracy", members.accuracies)):
        if values is not None:
            each = values[:, :, -1].mean(0)
            key = f"{prefix}member_{name}"
            numbers |= {
                key: float(each.median()),
                f"{key}_low": float(each.min()),
                f"{key}_high": float(each.max()),
            }
    return numbers
