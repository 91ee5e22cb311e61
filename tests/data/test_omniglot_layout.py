"""Omniglot's layout: counts, names and splits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from metalearn.data import omniglot_layout
from metalearn.data.omniglot_layout import ALPHABETS, class_names, divide
from metalearn.errors import DataError, SettingError

ALL = class_names({a: n for part in ALPHABETS.values() for a, n in part.items()})


def test_layout_counts_characters_and_alphabets() -> None:
    counts = {part: (len(a), sum(a.values())) for part, a in ALPHABETS.items()}
    assert counts == {"images_background": (30, 964), "images_evaluation": (20, 659)}
    assert len(ALL) == len(set(ALL)) == 1623 and list(ALL) == sorted(ALL)


@pytest.mark.parametrize(
    ("split", "counts"),
    [
        ("random", (1100, 100, 423)),
        ("alphabets", (766, 198, 659)),
        ("small1", (136, 198, 659)),
        ("small2", (156, 198, 659)),
    ],
)
def test_splits_have_their_counts_and_share_no_class(
    split: omniglot_layout.OmniglotSplit, counts: tuple[int, ...]
) -> None:
    parts = divide(ALL, split)
    assert list(parts) == ["train", "validation", "test"]
    assert tuple(len(part) for part in parts.values()) == counts
    assert len(set().union(*parts.values())) == sum(counts)
    if split != "random":
        alphabets = [{ALL[c].split("/")[0] for c in part} for part in parts.values()]
        assert alphabets[2] == set(ALPHABETS["images_evaluation"])
        assert len(alphabets[1]) == 5 and alphabets[1] < set(ALPHABETS["images_background"])
        assert not alphabets[0] & alphabets[1]


def test_small_splits_train_on_the_minimal_sets() -> None:
    trained = [
        {ALL[c].split("/")[0] for c in divide(ALL, split)["train"]}
        for split in ("small1", "small2")
    ]
    assert trained[0] == {"Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"}
    assert trained[1] == {"Greek", "Japanese_(katakana)", "Latin", "Sanskrit", "Tagalog"}


@pytest.mark.parametrize("split", ["alphabets", "small1", "small2"])
@pytest.mark.parametrize("count", [0, 1, 5, 8, 22])
def test_alphabets_for_validation_are_taken_from_the_background(
    split: omniglot_layout.OmniglotSplit, count: int
) -> None:
    usual, parts = divide(ALL, split), divide(ALL, split, count)
    groups = {part: {ALL[c].split("/")[0] for c in classes} for part, classes in parts.items()}
    assert set(parts) == ({"train", "validation", "test"} if count else {"train", "test"})
    held_out = groups.get("validation", set())
    assert len(held_out) == count and held_out <= set(ALPHABETS["images_background"])
    assert not held_out & groups["train"]
    assert parts["test"] == usual["test"]
    if split == "alphabets":
        assert groups["train"] | held_out == set(ALPHABETS["images_background"])
    else:
        assert parts["train"] == usual["train"]
    if count == 5:
        assert parts == usual
    for part, classes in parts.items():  # alphabets are whole
        sizes = ALPHABETS["images_background"] | ALPHABETS["images_evaluation"]
        assert len(classes) == sum(sizes[group] for group in groups[part])


def test_fewer_alphabets_for_validation_are_among_more() -> None:
    several = [set(divide(ALL, "alphabets", count)["validation"]) for count in range(1, 23)]
    assert all(one < other for one, other in pairwise(several))


@pytest.mark.parametrize("count", [-1, 23, 1.5, True, "5"])
def test_alphabets_for_validation_out_of_range(count: Any) -> None:
    with pytest.raises(SettingError, match="validation_groups=.*a whole number from 0 to 22"):
        divide(ALL, "small2", count)


def test_characters_are_not_divided_by_alphabets() -> None:
    with pytest.raises(SettingError, match="validation_groups=5: null is needed with split=rand"):
        divide(ALL, "random", 5)


def test_a_drifting_shuffle_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omniglot_layout, "_SHUFFLE_KEY", 7)
    with pytest.raises(DataError, match="split 'random' came out different from the fixed lists"):
        divide(ALL, "random")


def test_unknown_split_is_refused() -> None:
    with pytest.raises(SettingError, match="split='vinyals': one of random, alphabets, small1, s"):
        divide(ALL, "vinyals")  # type: ignore[arg-type]
