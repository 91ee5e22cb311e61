"""Whose data a training task is of: users with a task each, or groups of classes.

Axes: N units, T tasks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from metalearn.errors import DataError, SettingError
from metalearn.tasks import FewShotTasks, MixtureTasks, SinusoidTasks
from metalearn.tasks.deferred import DeferredTasks, TaskShapes
from metalearn.tasks.units import NumberedUnits, training_units_of
from tests.support.builders import labelled, patterns

SIZES: dict[str, Any] = {"way": 2, "shot": 1, "query": 1}


def grouped(data: Any = None, **settings: Any) -> FewShotTasks:
    """Tasks within the groups A, B and C of training classes."""
    return FewShotTasks(
        _in_groups() if data is None else data, **SIZES, within_group=True, **settings
    )


def _in_groups(left_out: str = "") -> Any:
    """`patterns`, of which the training classes are of the groups A to C; one may be left out."""
    data = patterns()
    names = "AAABBCCC"
    train, rest = data.splits["train"], {k: v for k, v in data.splits.items() if k != "train"}
    assert len(train) >= 8
    groups = ["rest"] * len(data.class_names)
    for place, c in enumerate(train):
        groups[c] = names[place % len(names)]
    kept = tuple(c for c in train if groups[c] != left_out)
    return replace(data, class_groups=tuple(groups), splits={"train": kept, **rest})


def assert_batches(one: Any, other: Any) -> None:
    for a, b in zip(one, other):
        for x, y in zip(a, b):
            assert torch.equal(x, y)


def test_users_are_the_first_tasks_of_a_source() -> None:
    tasks = SinusoidTasks(shot=3, query=4, seed=5)
    units = tasks.training_units(100)
    assert (units.count, units.name) == (100, "users")
    for step in (0, 7):
        assert_batches(units.sample([3, 99], step), tasks.sample("train", [3, 99]))


def test_a_task_of_a_group_is_of_its_classes_alone() -> None:
    tasks = grouped()
    units = tasks.training_units()
    assert units.name == "groups" and units.count == len(units.names) > 1
    seen: dict[int, set[int]] = {unit: set() for unit in range(units.count)}
    for step in range(40):
        batch = units.sample(range(units.count), step)
        assert batch.class_ids is not None
        for unit, classes in enumerate(batch.class_ids.tolist()):
            seen[unit] |= set(classes)
    groups = tasks.data.class_groups
    for unit, classes in seen.items():
        wanted = {c for c in tasks.data.splits["train"] if groups[c] == units.names[unit]}
        assert classes == wanted  # all of the group's, and no others


def test_groups_have_other_tasks_in_other_steps_and_the_same_in_the_same() -> None:
    units, again = (grouped(seed=1).training_units() for _ in range(2))
    assert_batches(units.sample([0, 1], 4), again.sample([0, 1], 4))
    assert_batches([[units.sample([0, 1], 4).query[0][1:]]], [[units.sample([1], 4).query[0]]])
    rows = {tuple(units.sample([0], step).support[0].flatten().tolist()) for step in range(20)}
    assert len(rows) > 5


def test_what_a_group_contributes_does_not_depend_on_the_others() -> None:
    """Neighbouring data sets: the tasks of all other groups stay what they are."""
    whole = grouped().training_units()
    left = whole.names[0]
    without = grouped(_in_groups(left_out=left)).training_units()
    assert without.names == whole.names[1:]
    for step in range(10):
        assert_batches(
            whole.sample(range(1, whole.count), step), without.sample(range(without.count), step)
        )


def test_turned_groups_are_still_one_unit() -> None:
    units = grouped(turn_groups=True).training_units()
    assert units.names == grouped().training_units().names
    ids = [int(units.sample([0], step).class_ids[0, 0]) for step in range(60)]  # type: ignore[index]
    count = len(grouped().data.class_names)
    assert {number // count for number in ids} == {0, 1, 2, 3}


def test_sizes_and_changes_belong_to_the_task_of_a_group_too() -> None:
    tasks = grouped(augment={"rotate": 10.0}, least={"way": 2})
    units = tasks.training_units()
    assert_batches(units.sample([1, 0], 3), tasks.training_units().sample([1, 0], 3))


@pytest.mark.parametrize(
    ("make", "users", "message"),
    [
        (lambda: SinusoidTasks(), None, "users=None: a whole number is needed: training tasks 0"),
        (lambda: SinusoidTasks(), 0, "users=0: a whole number of at least 1"),
        (lambda: FewShotTasks(labelled(), **SIZES), None,
         "task.within_group=False: true is needed: tasks of any classes share them"),
        (lambda: FewShotTasks(labelled(), **SIZES), 10, "task.within_group=False: true is needed"),
        (lambda: grouped(), 10, r"users=10: null is needed: the units of these tasks are 3 groups"),
        (lambda: MixtureTasks({"a": SinusoidTasks()}), 10,
         "tasks='MixtureTasks': a source of tasks that says whose they are"),
    ],
)  # fmt: skip
def test_what_has_no_units_is_refused(make: Any, users: int | None, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        training_units_of(make(), users)


def test_units_are_known_before_their_data_are_there() -> None:
    tasks, made = grouped(), []

    def make() -> Any:
        made.append(1)
        return tasks

    shapes = replace(TaskShapes.of(tasks), training_units=3)
    deferred = DeferredTasks(shapes, make)
    units = training_units_of(deferred, None)
    assert (units.count, units.name, made) == (3, "groups", [])
    assert_batches(units.sample([2], 1), tasks.training_units().sample([2], 1))
    assert made == [1]
    other = DeferredTasks(replace(shapes, training_units=4), make)
    with pytest.raises(DataError, match="these data have 3 groups, and 4 are expected"):
        training_units_of(other, None).sample([0], 0)
    unknown = DeferredTasks(TaskShapes.of(tasks), make)
    assert training_units_of(unknown, None).count == 3


def test_users_of_deferred_tasks_are_numbered() -> None:
    tasks = SinusoidTasks()
    shapes = replace(TaskShapes.of(tasks), training_units=50)
    units = training_units_of(DeferredTasks(shapes, lambda: tasks), 50)
    assert (units.count, units.name) == (50, "users")
    assert_batches(units.sample([7], 2), NumberedUnits(tasks, 50).sample([7], 2))
