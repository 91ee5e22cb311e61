"""Long-tailed training parts: how many stay, which, and what stays as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from metalearn.data import ClassificationData, digits_data, imbalanced, mislabelled
from metalearn.errors import SettingError
from tests.support.small_data import blobs


@pytest.mark.parametrize("ratio", [2, 10.0, 100])
def test_class_sizes_fall_in_equal_ratios(ratio: float) -> None:
    before = digits_data(seed=0)
    found = imbalanced(before, ratio=ratio, seed=3)
    sizes = torch.bincount(found.targets[found.splits["train"]], minlength=10)
    available = torch.bincount(before.targets[before.splits["train"]], minlength=10)
    expected = [round(int(sizes[0]) * ratio ** (-c / 9)) for c in range(10)]
    assert sizes.tolist() == expected
    assert int(sizes[0]) == int(available[0])  # digits are balanced: the first class is whole
    assert abs(int(sizes[0]) / ratio - int(sizes[9])) <= 0.5
    for split in ("validation", "test"):
        kept: Any = before.splits[split]  # type: ignore[index]
        assert torch.equal(found.splits[split], kept)  # type: ignore[index]
    assert torch.equal(found.targets, before.targets)
    assert set(found.splits["train"].tolist()) <= set(before.splits["train"].tolist())


def test_they_belong_to_the_seed_and_fewer_are_among_more() -> None:
    less, again, other = (imbalanced(blobs(), ratio=8, seed=s).splits["train"] for s in (1, 1, 2))
    assert torch.equal(less, again) and not torch.equal(less, other)
    more = imbalanced(blobs(), ratio=2, seed=1).splits["train"]
    assert len(less) < len(more) and set(less.tolist()) <= set(more.tolist())


def test_a_first_class_that_is_small_already_sets_the_size() -> None:
    rows = torch.tensor([*range(0, 12, 3), *range(1, 48, 3), *range(2, 48, 3)]).sort().values
    scarce = with_training(blobs(), rows)  # 4, 16 and 16 examples
    found = imbalanced(scarce, ratio=4, seed=0)
    assert torch.bincount(found.targets[found.splits["train"]]).tolist() == [4, 2, 1]
    reversed_rows = torch.tensor([*range(0, 48, 3), *range(1, 48, 3), *range(2, 12, 3)]).sort()
    found = imbalanced(with_training(blobs(), reversed_rows.values), ratio=4, seed=0)
    assert torch.bincount(found.targets[found.splits["train"]]).tolist() == [16, 8, 4]


def test_wrong_labels_come_after_it() -> None:
    found = mislabelled(imbalanced(blobs(), ratio=4, seed=0), fraction=0.2, seed=0)
    assert len(found.wrong) == 16 + 8 + 4 and int(found.wrong.sum()) == round(0.2 * 28)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 1}, "ratio=1: a finite number above 1"),
        ({"ratio": float("inf")}, "ratio=inf: a finite number above 1"),
        ({"ratio": True}, "ratio=True: a finite number above 1"),
        ({"ratio": 17}, "ratio=17.0: at most 16 is accepted"),
        ({"ratio": 2, "seed": -1}, "seed=-1: a whole number"),
        ({"ratio": 2, "data": mislabelled(blobs(), fraction=0.1)}, "data='MislabelledData'"),
    ],
)
def test_what_cannot_work_is_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        imbalanced(**{"data": blobs(), **settings})


def test_a_class_without_examples_is_named() -> None:
    with pytest.raises(SettingError, match=r"data=\[16, 16, 0\]: .*as of c"):
        imbalanced(with_training(blobs(), torch.tensor([i for i in range(48) if i % 3 < 2])),
                   ratio=2)  # fmt: skip


def with_training(data: ClassificationData, rows: torch.Tensor) -> ClassificationData:
    return replace(data, splits={**data.splits, "train": rows})
