"""Which learners can be trained privately: what tells of tasks in other ways is refused.

Axes: T tasks.
"""

from __future__ import annotations

import torch

from metalearn.errors import SettingError
from metalearn.tasks.by_split import any_split
from metalearn.tasks.deferred import DeferredTasks
from metalearn.trainers.meta.protocol import Learner
from metalearn.trainers.meta.stand_ins import stand_ins
from metalearn.types import TaskDistribution

__all__ = ["check_private_learner"]


def check_private_learner(learner: Learner, tasks: TaskDistribution, device: torch.device) -> None:
    """Refuse a learner of which more is trained than by its gradients of single tasks.

    Of tasks whose data are not looked for yet no statistics are looked at.

    Raises:
        SettingError: says what to do.
    """
    name = type(learner).__name__
    if learner.draws != "tasks":
        accepted = (
            "one that is trained on tasks is needed, such as protonet: samples of all classes"
        )
        raise SettingError("learner", name, f"{accepted} are of no unit")
    if learner.network.count is not None:
        accepted = "one network is needed: members would be paid for each; runs share a ledger"
        raise SettingError("model", type(learner.module).__name__, accepted)
    if _depth(learner, "gradient") < _depth(learner, "task_gradients"):
        accepted = "a method beside its own gradient is needed, of which it is the mean"
        raise SettingError(f"{name}.task_gradients", "Learner.task_gradients", accepted)
    if isinstance(tasks, DeferredTasks) and not tasks.there:
        return
    moved = learner.moved_buffers(learner.params, stand_ins(tasks, any_split(tasks), 1, device))
    if moved:
        accepted = "one without running statistics is needed, which would follow training tasks"
        way = "norm=batch_stats, group or layer; statistics_per_step=false"
        raise SettingError("model", f"{next(iter(moved))}", f"{accepted} without noise ({way})")


def _depth(learner: Learner, method: str) -> int:
    """How far from a learner's class the class is that has the method."""
    classes = type(learner).__mro__
    return next(i for i, kind in enumerate(classes) if method in vars(kind))
