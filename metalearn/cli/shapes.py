"""What a run's network was made for, so that it can be made again without the data."""

from __future__ import annotations

from functools import partial
from typing import Any

from omegaconf import DictConfig

from metalearn.cli.given_settings import plain_value
from metalearn.cli.targets import made
from metalearn.tasks.by_split import sizes_by_split
from metalearn.tasks.deferred import DeferredTasks, TaskShapes
from metalearn.trainers import Trainer

__all__ = ["deferred_tasks", "recorded_shapes"]

_CHANNELS = {
    "metalearn.tasks.folder_tasks": 3,
    "metalearn.tasks.glyph_tasks": 1,
    "metalearn.tasks.omniglot_tasks": 1,
}
"""By what makes the tasks of runs that recorded no shapes, the channels of a picture."""
_SIDE = 28  # of their pictures, where the settings do not say it


def recorded_shapes(trainer: Trainer) -> dict[str, Any] | None:
    """The shapes of a trainer's tasks in plain values; None where there are no tasks."""
    tasks = getattr(trainer, "tasks", None)
    if tasks is None:
        return None
    found = TaskShapes.of(tasks)
    plain = {
        "kind": found.kind,
        "input_shape": list(found.input_shape),
        "outputs": found.outputs,
        "outputs_by_split": dict(found.outputs_by_split),
    }
    if found.vocabulary is not None:
        plain["vocabulary"] = found.vocabulary
    classes = getattr(getattr(trainer, "learner", None), "training_classes", None)
    units = getattr(getattr(trainer, "units", None), "count", None)
    known = {"training_classes": classes, "training_units": units}
    return plain | {name: count for name, count in known.items() if count is not None}


def deferred_tasks(config: DictConfig) -> DeferredTasks | None:
    """A run's tasks, made when one is drawn; None where only the tasks tell their shapes."""
    shapes = _shapes_of(config)
    return None if shapes is None else DeferredTasks(shapes, partial(made, config.task, "task"))


def _shapes_of(config: DictConfig) -> TaskShapes | None:
    if config.get("shapes") is not None:
        known = plain_value(config.shapes)
        return TaskShapes(**{**known, "input_shape": tuple(known["input_shape"])})
    task = config.task
    channels = _CHANNELS.get(task["_target_"])
    if channels is None:
        return None
    ways = sizes_by_split("task.way", plain_value(task.get("way", 5)), 2)
    side = task.get("image_size", _SIDE)
    shape = (task.get("channels", channels), side, side)
    return TaskShapes("classification", shape, ways["train"], ways)
