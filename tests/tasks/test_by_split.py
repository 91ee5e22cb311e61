"""Way, shot and query that differ from split to split, and the classes that a batch names."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from metalearn.errors import SettingError
from metalearn.tasks import FewShotTasks, SinusoidTasks, outputs_by_split
from metalearn.types import TaskBatch
from tests.support.builders import assert_same, labelled, read_pictures

DATA = labelled()  # 16 classes: 8 for training, 4 each for validation and test
SPLITS: tuple[Any, ...] = ("train", "validation", "test")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (3, (3, 3, 3)),
        ({"train": 5, "test": 2}, (5, 2, 2)),
        ({"train": 5, "validation": 2}, (5, 2, 2)),
        ({"train": 2, "validation": 4, "test": 3}, (2, 4, 3)),
    ],
)
def test_each_split_has_its_own_sizes(given: Any, expected: tuple[int, ...]) -> None:
    tasks = FewShotTasks(DATA, way=given, shot=2, query=1)
    assert outputs_by_split(tasks) == dict(zip(SPLITS, expected))
    assert tasks.outputs == expected[0]
    for split, way in zip(SPLITS, expected):
        (x, y), (qx, qy) = tasks.sample(split, [0, 1])
        assert x.shape[:2] == (2, 2 * way) and qx.shape[:2] == (2, way)
        assert y[0].unique().tolist() == qy[0].tolist() == list(range(way))
        assert len(tasks.class_names(split, 0)) == way


@pytest.mark.parametrize("make", [lambda **s: FewShotTasks(DATA, way=2, **s), SinusoidTasks])
def test_shot_and_query_by_split(make: Any) -> None:
    tasks = make(shot={"train": 1, "test": 3}, query={"train": 2, "validation": 1, "test": 3})
    way = 1 if isinstance(tasks, SinusoidTasks) else 2
    found = [[part[0].shape[1] // way for part in tasks.sample(split, [7])] for split in SPLITS]
    assert found == [[1, 2], [3, 1], [3, 3]]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("make", [lambda **s: FewShotTasks(DATA, way=3, **s), SinusoidTasks])
def test_a_split_has_the_tasks_of_its_numbers_alone(make: Any, split: Any) -> None:
    own = {"train": (3, 2), "validation": (2, 4), "test": (1, 3)}
    names = ("shot", "query")
    each = {n: {s: sizes[i] for s, sizes in own.items()} for i, n in enumerate(names)}
    alone = make(**dict(zip(names, own[split])), seed=3)
    assert_same(make(**each, seed=3).sample(split, [4, 0]), alone.sample(split, [4, 0]))


def test_distributions_of_others_need_not_say_it() -> None:
    tasks = SinusoidTasks()
    assert not hasattr(tasks, "outputs_by_split")
    assert outputs_by_split(tasks) == {"train": 1, "validation": 1, "test": 1}


def test_data_without_a_split_need_no_number_for_it() -> None:
    data = labelled(splits={"train": tuple(range(8))})
    assert outputs_by_split(FewShotTasks(data, way={"train": 3})) == {"train": 3}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"way": {"test": 2}}, r"^way={'test': 2}: a number for the train split is needed as well"),
        ({"shot": {"train": 1}}, r"^shot={'train': 1}: a number for the validation split is"),
        ({"way": {}}, r"^way={}: a number for the train split"),
        ({"way": {"train": 2, "val": 2}}, r"^way={.*'val': 2}: splits are train, validation, test"),
        ({"way": {"train": 2, "test": 1}}, r"^way.test=1: a whole number of at least 2 is needed"),
        ({"shot": {"train": 0, "test": 1}}, r"^shot.train=0: a whole number of at least 1"),
        ({"query": {"train": 1, "test": None}}, r"^query.test=None: a whole number of at least 1"),
        ({"query": {"train": 1, "test": 1.5}}, r"^query.test=1.5: a whole number"),
        ({"way": {"train": 2, "test": 5}}, r"^way=5: the validation split offers 4 classes"),
        ({"way": {"train": 9, "test": 2}}, r"^way=9: the train split offers 8 classes"),
        ({"way": [2, 2, 2]}, r"^way=\[2, 2, 2\]: a whole number of at least 2"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        FewShotTasks(DATA, **{"way": 2, **settings})


def test_a_split_is_held_to_its_own_number_of_pictures() -> None:
    data = labelled([6] * 8 + [2] * 8)
    FewShotTasks(data, way=2, shot={"train": 3, "test": 1}, query={"train": 3, "test": 1})
    with pytest.raises(SettingError, match=r"^shot \+ query=3: class class8 has 2 pictures"):
        FewShotTasks(data, way=2, shot={"train": 3, "test": 1}, query={"train": 3, "test": 2})


# --- which classes they are --------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_a_batch_names_its_classes(split: Any, turned: bool) -> None:
    way = {"train": 4, "test": 3}
    tasks = FewShotTasks(DATA, way=way, shot=1, query=1, rotate_train=turned, rotate_eval=turned)
    batch = tasks.sample(split, [0, 5, 9])
    assert batch.class_ids is not None and batch.class_ids.dtype == torch.int64
    for inputs, labels in batch:
        assert inputs.shape[:2] == labels.shape
        for row, ids in enumerate(batch.class_ids):
            read = [
                c + len(DATA.class_names) * turns
                for c, _, turns in read_pictures(DATA, inputs[row])
            ]
            assert ids[labels[row]].tolist() == read


def test_class_ids_are_on_the_device_of_the_batch() -> None:
    batch = FewShotTasks(DATA, way=2).sample("train", [0], device="meta")
    assert batch.class_ids is not None and batch.class_ids.device.type == "meta"


def test_a_batch_is_a_pair_with_or_without_ids() -> None:
    x, ids = torch.ones(2, 3), torch.tensor([[4, 1], [0, 2]])
    assert TaskBatch(x, x).class_ids is None
    batch = TaskBatch(x, x + 1, class_ids=ids)
    support, query = batch
    assert len(batch) == 2 and support is x and torch.equal(query, x + 1)
    kept = batch._replace(query=x)
    assert kept.class_ids is ids and kept.query is x and kept.support is x
    assert kept._replace(class_ids=None).class_ids is None
    for same in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert type(same) is TaskBatch and torch.equal(same.class_ids, ids)
    half = torch.func.vmap(lambda task: task.support * task.query)(batch)
    assert torch.equal(half, x * (x + 1))
