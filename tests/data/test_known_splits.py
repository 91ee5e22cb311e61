"""The lists of classes are those of papers: checksums, sizes, and what they leave out."""

from __future__ import annotations

import hashlib
import json

import pytest

from metalearn.data.imagenet_classes import MINI_IMAGENET, TIERED_GROUPS, TIERED_IMAGENET
from metalearn.data.known_splits import CIFAR100_SUPERCLASSES, CIFAR_FS, FC100, ClassSplits

LISTS = {
    "cifar_fs": (CIFAR_FS, (64, 16, 20), "7307e8013d0ca5da"),
    "fc100": (FC100, (60, 20, 20), "068c56b88bff714f"),
    "mini_imagenet": (MINI_IMAGENET, (64, 16, 20), "69b7e4da7ba768a2"),
    "tiered_imagenet": (TIERED_IMAGENET, (351, 97, 160), "bac4476a87330e8c"),
}


@pytest.mark.parametrize("name", list(LISTS))
def test_lists_are_as_they_were_checked(name: str) -> None:
    splits, sizes, checksum = LISTS[name]
    assert tuple(len(splits[s]) for s in ("train", "validation", "test")) == sizes
    assert sum(sizes) == len({c for classes in splits.values() for c in classes})
    text = json.dumps({split: list(classes) for split, classes in splits.items()})
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == checksum


@pytest.mark.parametrize("splits", [CIFAR_FS, FC100])
def test_cifar_lists_divide_the_classes_of_cifar(splits: ClassSplits) -> None:
    classes = sorted(c for group in CIFAR100_SUPERCLASSES.values() for c in group)
    assert sorted(c for chosen in splits.values() for c in chosen) == classes
    assert len(set(classes)) == 100 and len(CIFAR100_SUPERCLASSES) == 20
    assert all(len(group) == 5 for group in CIFAR100_SUPERCLASSES.values())


def test_no_superclass_of_fc100_is_in_two_splits() -> None:
    for group, classes in CIFAR100_SUPERCLASSES.items():
        assert len([s for s, chosen in FC100.items() if set(classes) & set(chosen)]) == 1, group


def test_no_category_of_tiered_imagenet_is_in_two_splits() -> None:
    homes: dict[str, set[str]] = {}
    for split, names in TIERED_IMAGENET.items():
        for name in names:
            assert len(name) == 9 and name[0] == "n" and name[1:].isdecimal()
            homes.setdefault(TIERED_GROUPS[name], set()).add(split)
    assert len(homes) == 34 and all(len(splits) == 1 for splits in homes.values())
