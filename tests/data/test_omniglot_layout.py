"""Omniglot's layout: counts, names and splits."""

from __future__ import annotations

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


def test_a_drifting_shuffle_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omniglot_layout, "_SHUFFLE_KEY", 7)
    with pytest.raises(DataError, match="split 'random' came out different from the fixed lists"):
        divide(ALL, "random")


def test_unknown_split_is_refused() -> None:
    with pytest.raises(SettingError, match="split='vinyals': one of random, alphabets, small1, s"):
        divide(ALL, "vinyals")  # type: ignore[arg-type]
