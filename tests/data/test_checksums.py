"""Checksums of data: of values, not of where they lie."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from metalearn.data import ClassificationData, waves_data
from metalearn.data import checksums as room
from metalearn.data.checksums import data_checksum
from metalearn.tasks import SinusoidTasks
from tests.support.builders import labelled, samples


def test_equal_data_have_equal_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (labelled, samples, lambda: waves_data(samples=40)):
        one = data_checksum(make())
        assert one == data_checksum(make()) and len(str(one)) == 64
        monkeypatch.setattr(room, "_ROWS", 7)  # however many samples are read at a time
        assert data_checksum(make()) == one
        monkeypatch.undo()
    assert len({data_checksum(make()) for make in (labelled, samples)}) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"images": labelled().images.clone().index_fill_(0, torch.tensor([3]), 7)},
        {"labels": labelled().labels.roll(1)},
        {"class_names": (*labelled().class_names[:-1], "other")},
        {"class_groups": ("some",) * 16},
        {"splits": {"train": (0, 1, 2), "test": (3, 4, 5)}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_counts(change: dict[str, Any]) -> None:
    data = labelled()
    assert data_checksum(replace(data, **change)) != data_checksum(data)


def test_types_and_shapes_count() -> None:
    splits = {name: torch.tensor([i]) for i, name in enumerate(("train", "validation", "test"))}

    def data(inputs: torch.Tensor) -> ClassificationData:
        return ClassificationData(inputs, torch.tensor([0, 1, 0]), ("a", "b"), splits)

    zeros = [torch.zeros(3, 4), torch.zeros(3, 2, 2), torch.zeros(3, 4, dtype=torch.float64)]
    assert len({data_checksum(data(x)) for x in zeros}) == 3


def test_what_is_no_data_set_has_none() -> None:
    assert data_checksum(SinusoidTasks()) is None and data_checksum(None) is None
