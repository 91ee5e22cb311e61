"""Few-shot tasks of arrays: rows of their classes, classes that splits do not share, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from metalearn.data.checksums import data_checksum
from metalearn.errors import DataError, SettingError
from metalearn.tasks import array_tasks
from metalearn.trainers import MetaTrainer, ProtoNet

CLASSES, EACH = 12, 8
LABELS = np.arange(CLASSES * EACH) % CLASSES
ROWS = np.stack([LABELS * 1.0, np.arange(len(LABELS)) / 100, np.ones(len(LABELS))], 1)
FORMS: dict[str, Any] = {
    "arrays": (ROWS, LABELS),
    "lists and words": (ROWS.tolist(), [f"class {label:02}" for label in LABELS]),
    "dataset": (TensorDataset(torch.tensor(ROWS), torch.tensor(LABELS)), None),
    "loader": (DataLoader(TensorDataset(torch.tensor(ROWS), torch.tensor(LABELS)), 5), None),
}


@pytest.mark.parametrize("form", FORMS)
def test_tasks_are_rows_of_their_classes_and_splits_share_none(form: str) -> None:
    tasks = array_tasks(*FORMS[form], way=2, shot=3, query=2)
    assert tasks.input_shape == (3,)
    seen: dict[str, set[float]] = {}
    for split in ("train", "validation", "test"):
        (x, y), (queries, targets) = tasks.sample(split, range(20))
        assert x.shape == (20, 6, 3) and queries.shape == (20, 4, 3) and x.dtype == torch.float32
        rows, labels = torch.cat([x, queries], 1), torch.cat([y, targets], 1)
        for task, own in zip(rows, labels):
            for label in range(2):
                assert len(set(task[own == label][:, 0].tolist())) == 1  # one class of the data
            assert len(set(task[:, 1].tolist())) == 10  # support and query share no row
        seen[split] = set(rows[..., 0].flatten().tolist())
        again = tasks.sample(split, [19]).query[0]
        assert torch.equal(again[0], queries[19])
    every = [value for values in seen.values() for value in values]
    assert len(every) == len(set(every))


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0.0, 1.0, 2.0]), torch.tensor([0, 1, 2]), list(torch.arange(3)),
        (0, 1.0, "2"), (n for n in range(3)), range(3),
    ],
    ids=["floats", "tensor", "tensors", "mixed", "generator", "range"],
)  # fmt: skip
def test_labels_of_a_split_are_known_in_any_form(labels: Any) -> None:
    tasks = array_tasks(ROWS, LABELS, splits={"train": labels}, way=2, shot=1, query=1)
    assert dict(tasks.data.splits) == {"train": (0, 1, 2)}


def test_splits_of_ones_own_name_labels() -> None:
    splits = {"train": [0, 1, 2], "test": [7, 9]}
    tasks = array_tasks(ROWS, LABELS, splits=splits, way=2, shot=1, query=1)
    assert set(tasks.data.splits) == {"train", "test"}
    drawn = tasks.sample("test", range(5)).support[0][..., 0]
    assert set(drawn.flatten().tolist()) == {7.0, 9.0}


class Named(TensorDataset):
    """With names of its classes, as data sets of torchvision have them."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(torch.tensor(ROWS), torch.tensor(LABELS))
        self.classes = names


@pytest.mark.parametrize("train", [["kind 0", "kind 3"], [0, 3], [0, "kind 3"]])
def test_classes_have_the_names_of_a_dataset_and_splits_may_say_them(train: list[Any]) -> None:
    data = Named([f"kind {number}" for number in range(CLASSES)])
    tasks = array_tasks(data, splits={"train": train}, way=2, shot=1, query=1)
    assert tasks.data.class_names == tuple(data.classes)
    assert dict(tasks.data.splits) == {"train": (0, 3)}
    crossed = Named([str(CLASSES - 1 - number) for number in range(CLASSES)])
    by_name = array_tasks(crossed, splits={"train": ["0", "3"]}, way=2, shot=1, query=1)
    assert dict(by_name.data.splits) == {"train": (CLASSES - 4, CLASSES - 1)}
    by_label = array_tasks(crossed, splits={"train": [0, 3]}, way=2, shot=1, query=1)
    assert dict(by_label.data.splits) == {"train": (0, 3)}
    few = array_tasks(Named(["one", "two"]), splits={"train": [0, 3]}, way=2, shot=1, query=1)
    assert few.data.class_names == tuple(map(str, range(CLASSES)))  # it does not name them all


def test_classes_without_samples_are_none() -> None:
    rows = np.eye(CLASSES + 2)[LABELS + (LABELS > 4)]  # columns 5 and 13 are empty
    tasks = array_tasks(ROWS, rows, way=2, shot=1, query=1)
    assert tasks.data.class_names == tuple(str(n) for n in range(CLASSES + 1) if n != 5)
    for split, classes in tasks.data.splits.items():
        drawn = tasks.sample(split, range(20)).support[0][..., 0]
        assert set(drawn.flatten().tolist()) == set(map(float, classes))


def test_pictures_are_turned_and_arrays_are_not() -> None:
    pictures = torch.randint(0, 255, (len(LABELS), 1, 6, 6), dtype=torch.uint8)
    tasks = array_tasks(pictures, LABELS, way=2, shot=1, query=1, rotate_train=True)
    assert tasks.sample("train", [0]).support[0].min() >= 0 and tasks.turned
    for setting in ({"rotate_train": True}, {"augment": {"rotate": 10.0}}):
        with pytest.raises(SettingError, match="arrays"):
            array_tasks(ROWS, LABELS, way=2, shot=1, query=1, **setting)


def test_a_learner_trains_on_them_and_their_checksum_tells_them_apart() -> None:
    tasks = array_tasks(ROWS, LABELS, way=2, shot=2, query=2)
    trainer = MetaTrainer(
        nn.Linear(3, 4), tasks, learner=ProtoNet, steps=2, meta_batch=2, progress=False
    )
    trainer.fit()
    other = array_tasks(ROWS + 1, LABELS, way=2, shot=2, query=2)
    assert data_checksum(tasks.data) not in (None, data_checksum(other.data))


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"way": 9}, SettingError, "way"),
        ({"shot": 8}, SettingError, "shot.*has 8 arrays"),
        ({"splits": {"trial": [0, 1]}}, SettingError, "splits='trial'"),
        ({"splits": {"train": [0, "none"]}}, SettingError, "none"),
        ({"splits": {"train": "abc"}}, SettingError, "a list of labels"),
        ({"splits": {"train": None}}, SettingError, "a list of labels"),
        ({"splits": {"train": 3}}, SettingError, "a list of labels"),
        ({"splits": {"train": [0, 1]}, "test_fraction": 0.2}, SettingError, "splits divide"),
        ({"test_fraction": 0}, SettingError, "test_fraction"),
        ({"ways": 3}, SettingError, "way"),
        ({"test_fraction": 0.75, "validation_fraction": 0.2}, DataError, "leave"),
    ],
)
def test_what_cannot_work_is_said(settings: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        array_tasks(ROWS, LABELS, **{"way": 2, "shot": 1, "query": 1, **settings})
