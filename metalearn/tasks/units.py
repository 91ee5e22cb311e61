"""Whose data a training task is of: the units that a private training protects.

A source of tasks says so by a method ``training_units(users)``, where its training tasks can be
told apart by whose they are. One that has none is refused.

Axes: N units, T tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch

from metalearn.errors import SettingError, check_whole
from metalearn.types import TaskBatch, TaskDistribution

__all__ = ["GroupUnits", "NumberedUnits", "TrainingUnits", "training_units_of"]

_LARGEST = 2**55
"""Numbers of tasks of a group lie below it, which every stream has an address for."""

_SAID = "a source of tasks that says whose they are (training_units) is needed, such as sinusoid"


class TrainingUnits(Protocol):
    """N units, each with training tasks of its own that have no data of another unit's."""

    count: int
    """N."""
    name: Literal["users", "groups"]
    """What they are called."""

    def sample(
        self, units: Sequence[int], step: int, *, device: torch.device | str = "cpu"
    ) -> TaskBatch:
        """A training task of each of these units, ``[T, ...]``, in a step of a training.

        It depends on the unit, the step and the seed of the tasks, and on no other unit.
        """


class NumberedUnits:
    """Users that have one training task each: the tasks 0 .. N−1 of a source.

    For sources whose tasks share no data, such as those that are computed.

    Args:
        tasks: the source.
        users: N.

    Raises:
        SettingError: no number of users.
    """

    name: Literal["users"] = "users"

    def __init__(self, tasks: TaskDistribution, users: int | None) -> None:
        if users is None:
            accepted = "a whole number is needed: training tasks 0 .. users − 1 are one user's each"
            raise SettingError("users", users, accepted)
        check_whole("users", users, 1, _LARGEST)
        self.tasks, self.count = tasks, users

    def sample(
        self, units: Sequence[int], step: int, *, device: torch.device | str = "cpu"
    ) -> TaskBatch:
        """The task of each user, the same in every step."""
        return self.tasks.sample("train", units, device=device)


class GroupUnits:
    """Groups of classes, such as alphabets, of which a step takes one task each.

    Args:
        names: of the groups; a group's tasks follow from its name, so that they stay the same
            where another group is there or not.
        draw: from numbers of tasks and places of groups, ``[T]`` each, and a device to tasks.
        users: as of `NumberedUnits`, for which there is no use here.

    Raises:
        SettingError: a number of users.
    """

    name: Literal["groups"] = "groups"

    def __init__(
        self,
        names: Sequence[str],
        draw: Callable[[Sequence[int], Sequence[int], torch.device | str], TaskBatch],
        users: int | None = None,
    ) -> None:
        if users is not None:
            accepted = f"null is needed: the units of these tasks are {len(names)} groups"
            raise SettingError("users", users, accepted)
        self.names, self.count, self._draw = tuple(names), len(names), draw

    def sample(
        self, units: Sequence[int], step: int, *, device: torch.device | str = "cpu"
    ) -> TaskBatch:
        """A task of classes of each group, another in every step."""
        return self._draw([_number(self.names[unit], step) for unit in units], units, device)


def training_units_of(tasks: TaskDistribution, users: int | None) -> TrainingUnits:
    """The units of a source's training tasks.

    Args:
        tasks: the source.
        users: N, where a source has as many tasks as one likes; None where it has units of its own.

    Raises:
        SettingError: a source that cannot say whose its tasks are, or not how many units.
    """
    make: Any = getattr(tasks, "training_units", None)
    if make is None:
        raise SettingError("tasks", type(tasks).__name__, _SAID)
    found: TrainingUnits = make(users)
    return found


def _number(name: str, step: int) -> int:
    digest = hashlib.sha256(f"{step} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") % _LARGEST
