"""Scores over many tasks as means with intervals: for records, and as the report of a test.

Axes: M members, K inner steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.trainers.task_scores import MemberScores, TaskScores, mean_interval

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


def task_report(scores: TaskScores) -> TestReport:
    """Mean and half-width of the 95 % interval over the tasks."""
    found, accuracies = scores.members, scores.accuracies
    members = None
    if found is not None:
        calibration = found.calibration
        members = MemberReport(
            _intervals(found.losses),
            None if found.accuracies is None else _intervals(found.accuracies),
            torch.stack(mean_interval(found.epistemic)).cpu(),
            None if calibration is None else torch.stack(mean_interval(calibration)).cpu(),
        )
    return TestReport(
        len(scores.losses),
        torch.stack(mean_interval(scores.losses)).cpu(),
        None if accuracies is None else torch.stack(mean_interval(accuracies)).cpu(),
        members,
    )


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
    """Means before and after adaptation, and the ends of their 95 % intervals."""
    numbers: dict[str, float] = {}
    for name, values in (("loss", scores.losses), ("accuracy", scores.accuracies)):
        if values is None:
            continue
        mean, half = mean_interval(values)
        for when, k in (("before", 0), ("after", -1)):
            centre, width = float(mean[k]), float(half[k])
            key = f"{prefix}/{name}_{when}"
            numbers |= {key: centre, f"{key}_low": centre - width, f"{key}_high": centre + width}
    return numbers | _member_numbers(prefix, scores.members)


def _member_numbers(prefix: str, members: MemberScores | None) -> dict[str, float]:
    """Median and extremes of members after adaptation, and what they do not agree on."""
    if members is None:
        return {}
    numbers = {f"{prefix}/epistemic": float(members.epistemic.mean())}
    if members.calibration is not None:
        numbers[f"{prefix}/calibration_error"] = float(members.calibration.mean())
    for name, values in (("loss", members.losses), ("accuracy", members.accuracies)):
        if values is not None:
            each = values[:, :, -1].mean(0)
            key = f"{prefix}/member_{name}"
            numbers |= {
                key: float(each.median()),
                f"{key}_low": float(each.min()),
                f"{key}_high": float(each.max()),
            }
    return numbers
