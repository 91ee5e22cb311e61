"""How tasks went: scores at every inner step, of one learner or of an ensemble of them.

Axes: T tasks, K inner steps, N query samples, C classes, M members.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.core.tree import check_floating, tree_map
from metalearn.errors import SettingError
from metalearn.signatures import checked

__all__ = ["MemberScores", "QueryOutcomes", "TaskScores", "joined_scores", "mean_interval"]


class MemberScores(NamedTuple):
    """What an ensemble of learners knows beside the scores of its mean prediction."""

    losses: Tensor
    """``[T, M, K+1]``: mean query loss of each member."""
    accuracies: Tensor | None
    """``[T, M, K+1]``; None for regression."""
    epistemic: Tensor
    """``[T]``: mean over queries, after K steps, of the mutual information of prediction and member
    in nats; of the variance between members for regression."""
    calibration: Tensor | None
    """``[T]``: expected calibration error over a task's queries after K steps; None for
    regression."""


class QueryOutcomes(NamedTuple):
    """What is predicted of each query after K steps, and what is right."""

    probabilities: Tensor
    """``[T, N, C]``; of an ensemble, the mean of its members'."""
    labels: Tensor
    """``[T, N]``: the right classes, the most probable ones of probabilities; −100 for padding."""


class TaskScores(NamedTuple):
    """How T tasks went, before and after each of K inner steps."""

    losses: Tensor
    """``[T, K+1]``: mean query loss."""
    accuracies: Tensor | None
    """``[T, K+1]``: share of queries classified rightly; None for regression."""
    predictions: Tensor
    """``[T, K+1, N]`` predicted classes, or ``[T, K+1, N, outputs]`` for regression."""
    members: MemberScores | None = None
    """Of an ensemble, whose mean prediction the scores above are of."""
    queries: QueryOutcomes | None = None
    """None for regression."""


def joined_scores(parts: Sequence[TaskScores]) -> TaskScores:
    """The scores of several batches of tasks, at least one, as one."""
    if not parts:
        raise SettingError("parts", 0, "scores of at least one batch of tasks are needed")
    found: TaskScores = tree_map(_joined, *parts)
    return found


@checked
def mean_interval(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over tasks and half-width of its 95 % interval: 1.96 · s / √T, s with divisor T − 1.

    Args:
        values: ``[T, ...]``.

    Returns:
        Two tensors ``[...]``; the half-width is NaN-free and 0 where T is 1.

    Raises:
        SettingError: T is 0.
    """
    check_floating(values, "values")
    count = len(values) if values.dim() else 0
    if not count:
        raise SettingError("values", list(values.shape), "at least one task is needed")
    spread = values.std(0) if count > 1 else torch.zeros_like(values[0])
    return values.mean(0), 1.96 * spread / math.sqrt(count)


def _joined(*values: Any) -> Any:
    return torch.cat(values) if isinstance(values[0], Tensor) else values[0]
