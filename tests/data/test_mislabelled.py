"""Planted wrong labels: how many, which, and what keeps its label."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metalearn.data import MislabelledData, mislabelled
from metalearn.errors import SettingError
from tests.support.small_data import blobs


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_as_many_training_labels_are_wrong_as_are_asked_for(fraction: float) -> None:
    right = blobs()
    found = mislabelled(right, fraction=fraction, seed=3)
    assert int(found.wrong.sum()) == round(fraction * right.size("train"))
    rows = right.splits["train"]
    assert torch.equal(found.wrong, found.targets[rows] != right.targets[rows])
    assert torch.equal(found.true_targets, right.targets)
    for split in ("validation", "test"):
        kept: Any = right.splits[split]  # type: ignore[index]
        assert torch.equal(found.targets[kept], right.targets[kept])
    assert torch.equal(found.inputs, right.inputs)
    assert 0 <= int(found.targets.min()) <= int(found.targets.max()) < right.outputs


def test_they_belong_to_the_seed_and_more_begin_with_the_same_ones() -> None:
    few, again = (mislabelled(blobs(), fraction=0.2, seed=1) for _ in range(2))
    assert torch.equal(few.targets, again.targets)
    more, other = (mislabelled(blobs(), fraction=0.4, seed=s) for s in (1, 2))
    assert bool(more.wrong[few.wrong].all())
    assert torch.equal(more.targets[more.splits["train"][few.wrong]],
                       few.targets[few.splits["train"][few.wrong]])  # fmt: skip
    assert not torch.equal(more.wrong, other.wrong)


def test_every_other_class_is_drawn() -> None:
    found = mislabelled(blobs(), fraction=0.9, seed=0)
    rows = found.splits["train"][found.wrong]
    shift = (found.targets[rows] - found.true_targets[rows]) % found.outputs
    assert set(shift.tolist()) == {1, 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0.0}, "fraction=0.0: a number between 0 and 1"),
        ({"fraction": 1}, "fraction=1: a number between 0 and 1"),
        ({"fraction": 0.001}, "fraction=0.001: a share is needed that is at least 1 of 48"),
        ({"fraction": 0.1, "seed": -1}, "seed=-1: a whole number"),
        ({"fraction": 0.1, "data": mislabelled(blobs(), fraction=0.1)}, "data='MislabelledData'"),
    ],
)
def test_what_cannot_work_is_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        mislabelled(**{"data": blobs(), **settings})


def test_true_labels_are_one_a_sample() -> None:
    known = mislabelled(blobs(), fraction=0.1)
    with pytest.raises(SettingError, match="true_targets=.*one a sample"):
        MislabelledData(
            known.inputs, known.targets, known.class_names, known.splits,
            true_targets=known.true_targets[:5],
        )  # fmt: skip
