"""Scores that are NaN: said as such, and never reported as if a network had answered.

Axes: T tasks, M members, N queries, C classes.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from metalearn.errors import NonFiniteError
from metalearn.trainers.members.not_finite import named
from metalearn.trainers.meta.scores import TaskScores

__all__ = ["check_tasks", "hits"]

log = logging.getLogger(__name__)

_SHOWN = 8  # tasks that a warning names


def hits(outputs: Tensor, labels: Tensor) -> Tensor:
    """Whether the most probable class is the right one: 1, 0, or NaN where outputs are NaN.

    Args:
        outputs: ``[..., N, C]``; the most probable class of NaN would be the first one.
        labels: ``[..., N]``.
    """
    right = (outputs.argmax(-1) == labels).to(outputs.dtype)
    return torch.where(outputs.isnan().any(-1), torch.nan, right)


def check_tasks(scores: TaskScores, split: str) -> None:
    """Refuse scores of which nothing is known, and warn of tasks that make a mean NaN.

    Raises:
        NonFiniteError: every task's score is NaN after adaptation; a member is named.
    """
    lost = scores.losses[:, -1].isnan()
    if not lost.any():
        return
    members: list[int] = []
    if scores.members is not None:
        members = scores.members.losses[:, :, -1].isnan().all(0).nonzero().flatten().tolist()
    who = f" with those of {named(members)}" if members else ""
    if lost.all():
        raise NonFiniteError(
            f"{split}: the predictions of all {len(lost)} tasks are NaN{who} after adaptation; "
            "a lower inner learning rate or fewer steps may help"
        )
    tasks = lost.nonzero().flatten().tolist()
    more = ", …" if len(tasks) > _SHOWN else ""
    log.warning(
        "%s: the predictions of %d of %d tasks are NaN (%s%s), so the means over tasks are NaN",
        split,
        len(tasks),
        len(lost),
        ", ".join(map(str, tasks[:_SHOWN])),
        more,
    )
