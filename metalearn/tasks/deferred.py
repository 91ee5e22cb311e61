"""Tasks whose data are looked for when a task is asked for, and not before.

Axes: none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from metalearn.errors import DataError
from metalearn.tasks.by_split import outputs_by_split
from metalearn.tasks.units import TrainingUnits, training_units_of
from metalearn.types import Split, TaskBatch, TaskDistribution

__all__ = ["DeferredTasks", "TaskShapes"]


@dataclass(frozen=True)
class TaskShapes:
    """What a network has to fit, of a `TaskDistribution`."""

    kind: Literal["classification", "regression"]
    input_shape: tuple[int, ...]
    outputs: int
    outputs_by_split: Mapping[str, int]
    vocabulary: int | None = None
    """Numbers of tokens, where inputs are texts."""
    training_classes: int | None = field(default=None, compare=False)
    """Of a `SampleDistribution`, where a classifier of all of them is trained."""
    training_units: int | None = field(default=None, compare=False)
    """How many units of a source's training tasks are private, where they are."""

    @classmethod
    def of(cls, tasks: TaskDistribution) -> TaskShapes:
        """Those of tasks."""
        shape = tuple(int(size) for size in tasks.input_shape)
        vocabulary = getattr(tasks, "vocabulary", None)
        return cls(tasks.kind, shape, int(tasks.outputs), outputs_by_split(tasks), vocabulary)


class DeferredTasks:
    """A `TaskDistribution` of known shapes, made at the first task that is drawn.

    So a trained learner comes back where its data set is not. All else that is asked of it is asked
    of the tasks themselves, and makes them.

    Args:
        shapes: of the tasks.
        make: the tasks, with their data.
    """

    def __init__(self, shapes: TaskShapes, make: Callable[[], TaskDistribution]) -> None:
        self.shapes = shapes
        self.kind, self.input_shape, self.outputs = shapes.kind, shapes.input_shape, shapes.outputs
        self.outputs_by_split, self.vocabulary = shapes.outputs_by_split, shapes.vocabulary
        self._make = make
        self._made: TaskDistribution | None = None

    @classmethod
    def scored(
        cls,
        tasks: TaskDistribution,
        *,
        training_classes: int | None = None,
        training_units: int | None = None,
    ) -> DeferredTasks:
        """Tasks that are there, for a learner that was trained on classes or units of others."""
        shapes = replace(
            TaskShapes.of(tasks), training_classes=training_classes, training_units=training_units
        )
        found = cls(shapes, lambda: tasks)
        found._made = tasks
        return found

    @property
    def there(self) -> bool:
        """Whether they have been made."""
        return self._made is not None

    @property
    def made(self) -> TaskDistribution:
        """The tasks themselves.

        Raises:
            DataError: the data set is not there, or tasks of it have other shapes.
        """
        if self._made is None:
            tasks = self._make()
            found = TaskShapes.of(tasks)
            if found != self.shapes:
                raise DataError(f"these data make tasks of {found}, and {self.shapes} are expected")
            self._made = tasks
        return self._made

    @property
    def training_classes(self) -> int | None:
        """How many classes there are in training, over all tasks; None where tasks know none."""
        known = self.shapes.training_classes
        return getattr(self.made, "training_classes", None) if known is None else known

    def training_units(self, users: int | None = None) -> TrainingUnits:
        """Those of the tasks themselves, as many as are known before there are any."""
        known = self.shapes.training_units
        if known is None:
            return training_units_of(self.made, users)
        return _DeferredUnits(known, "groups" if users is None else "users", self, users)

    def sample(
        self, split: Split, indices: Sequence[int], *, device: torch.device | str = "cpu"
    ) -> TaskBatch:
        """Tasks ``indices`` of a split."""
        return self.made.sample(split, indices, device=device)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying and pickling ask for such before anything is there
            raise AttributeError(name)
        return getattr(self.made, name)


@dataclass
class _DeferredUnits:
    """Units of known number, of tasks that need not be there."""

    count: int
    name: Literal["users", "groups"]
    tasks: DeferredTasks
    users: int | None

    def sample(
        self, units: Sequence[int], step: int, *, device: torch.device | str = "cpu"
    ) -> TaskBatch:
        """A training task of each of these units."""
        found = training_units_of(self.tasks.made, self.users)
        if found.count != self.count:
            reason = f"these data have {found.count} {found.name}, and {self.count} are expected"
            raise DataError(reason)
        return found.sample(units, step, device=device)
