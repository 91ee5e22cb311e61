"""Whether a model fits the tasks that it is to be trained on, before any training.

Axes: T tasks of a meta-batch, N samples of a support set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.core.memory import check_memory
from metalearn.core.targets import check_form
from metalearn.core.tree import leaves
from metalearn.errors import SettingError
from metalearn.tasks import outputs_by_split
from metalearn.tasks.by_split import any_split
from metalearn.tasks.deferred import DeferredTasks
from metalearn.trainers.meta.protocol import Learner
from metalearn.types import TaskDistribution

__all__ = ["check_fit"]


def check_fit(
    learner: Learner, tasks: TaskDistribution, meta_batch: int, device: torch.device
) -> None:
    """Run one task's support set through the model, and look at its targets.

    Of tasks whose data are not looked for yet nothing is run.

    Args:
        learner: whose module is looked at.
        tasks: that it is to be trained on.
        meta_batch: T, which has to fit the memory.
        device: where tasks are made.

    Raises:
        SettingError: what does not fit.
    """
    ways = outputs_by_split(tasks)
    if learner.needs == "logits" and len(set(ways.values())) > 1:
        accepted = "a model with a logit for each class needs the same way in every split"
        raise SettingError("task.way", ways, accepted)
    if isinstance(tasks, DeferredTasks) and not tasks.there:
        return
    batch = tasks.sample(any_split(tasks), [0], device=device)
    size = sum(part.numel() * part.element_size() for part in leaves(batch))
    check_memory("meta_batch", meta_batch, size * meta_batch, device)
    inputs = batch.support[0][0]
    name = type(learner.module).__name__
    try:
        with torch.no_grad():
            outputs = learner.outputs(inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        accepted = f"a model that takes inputs {list(inputs.shape)} is needed ({reason})"
        raise SettingError("model", name, accepted) from error
    got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    wanted: list[int | str] = [len(inputs), tasks.outputs]
    fits = got == wanted
    if learner.needs == "features":
        wanted = [len(inputs), learner.features or "features"]
        fits = isinstance(got, list) and len(got) == 2 and learner.features in (None, got[1])
    if not fits:
        accepted = f"outputs {wanted} are needed for these tasks, not {got}".replace("'", "")
        raise SettingError("model", name, accepted)
    for _, targets in batch:
        classes = tasks.kind == "classification"
        check_form(classes, (len(targets[0]), tasks.outputs), targets[0])
    learner.check(batch)
