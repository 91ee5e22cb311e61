"""Losses of a task's queries, one by one or their mean, as learners predict them.

Axes: Q queries.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor

from metalearn.errors import SettingError
from metalearn.trainers.meta.method_checks import check_outputs, of_task, predicted
from metalearn.trainers.meta.protocol import Learner
from metalearn.types import Batch

__all__ = ["Reduction", "check_reduction", "losses_of_queries"]

Reduction = Literal["none", "mean"]


def check_reduction(reduction: str) -> None:
    """Refuse an unknown one."""
    if reduction not in get_args(Reduction):
        accepted = f"one of {', '.join(get_args(Reduction))} is needed"
        raise SettingError("reduction", reduction, accepted)


def losses_of_queries(
    learner: Learner, state: Any, support: Batch, query: Batch, reduction: Reduction
) -> Tensor:
    """``[Q]``, 0 for padding; or ``[1]``, their mean without padding.

    Args:
        learner: which predicts.
        state: of it on one task.
        support: of the task.
        query: of the task.
        reduction: ``"none"`` or ``"mean"``.
    """
    outputs = predicted(learner, state, query[0])
    check_outputs(learner, outputs, query[1])
    outputs = of_task(learner, outputs, support[1])
    if reduction == "mean":
        return learner.criterion(outputs, query[1])[None]
    return learner.criterion.of_samples(outputs, query[1])
