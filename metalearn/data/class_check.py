"""Whether the classes of listed pictures, and their division, are those of a published data set.

Axes: N pictures, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from metalearn.data.conversion import ClassTable
from metalearn.data.known_splits import ClassSplits
from metalearn.data.listed_pictures import ListedPictures
from metalearn.errors import DataError

__all__ = ["class_table"]

_SPLITS = ("train", "validation", "test")


def class_table(
    listed: ListedPictures,
    known: ClassSplits,
    *,
    title: str,
    place: Path,
    groups: Mapping[str, str] | None = None,
    others: bool = False,
) -> ClassTable:
    """The classes of a data set, in the order of their names, and the label of every picture.

    Where the source divides its pictures, its splits have to be the known ones; where it does not,
    the known ones are taken. Of labels that are mere numbers nothing but how many each split has
    can be checked, and numbers that begin anew in every split are told apart.

    Args:
        listed: the pictures.
        known: split to the names of its classes.
        title: of the data set, for messages.
        place: of the pictures, for messages.
        groups: class to its group; None for no groups.
        others: whether an undivided source may hold other classes too, which are left out.

    Raises:
        DataError: a class that is missing or foreign, or another division.
    """
    home = {name: split for split, names in known.items() for name in names}
    if not listed.named:
        return _numbered(listed, known, title, place)
    divided = any(listed.splits)
    found = set(listed.labels)
    foreign = sorted(found - set(home))
    if foreign and (divided or not others):
        raise DataError(f"{place}: {foreign[0]} is no class of {title}{_of(found, home)}")
    missing = sorted(set(home) - found)
    if missing:
        raise DataError(f"{place}: the class {missing[0]} of {title} is missing{_of(found, home)}")
    if divided:
        _check_division(listed, home, title, place)
    names = tuple(sorted(home))
    number = {name: i for i, name in enumerate(names)}
    return ClassTable(
        names,
        tuple(groups[name] if groups else "" for name in names),
        {split: tuple(number[name] for name in chosen) for split, chosen in known.items()},
        np.array([number.get(label, -1) for label in listed.labels], np.int64),
    )


def _check_division(
    listed: ListedPictures, home: Mapping[str, str], title: str, place: Path
) -> None:
    stands: dict[str, set[str]] = {}
    for label, split in zip(listed.labels, listed.splits):
        stands.setdefault(label, set()).add(split)
    for label in sorted(stands):
        splits = sorted(stands[label], key=_SPLITS.index)
        if len(splits) > 1:
            raise DataError(
                f"{place}: the class {label} stands in {' and in '.join(splits)}: this upload "
                "divides the pictures of each class, as the Hub's timm/mini-imagenet does; "
                f"few-shot tasks need {title} with its classes divided"
            )
        if splits[0] != home[label]:
            raise DataError(
                f"{place}: the class {label} stands in {splits[0]}; {title} has it in {home[label]}"
            )


def _numbered(listed: ListedPictures, known: ClassSplits, title: str, place: Path) -> ClassTable:
    """Classes without names: those of a split are as many as are known, and its own."""
    numbers: dict[str, set[str]] = {split: set() for split in known}
    for label, split in zip(listed.labels, listed.splits):
        numbers[split].add(label)
    counts = [len(numbers[split]) for split in known]
    if counts != [len(names) for names in known.values()]:
        expected = ", ".join(f"{len(names)} for {split}" for split, names in known.items())
        raise DataError(
            f"{place}: labels are numbers without names, and {counts[0]}, {counts[1]} and "
            f"{counts[2]} classes in train, validation and test are not those of {title} "
            f"({expected}); uploads in which every split has all classes, as the Hub's "
            "timm/mini-imagenet, do not divide classes"
        )
    order = [(split, label) for split, found in numbers.items() for label in sorted(found, key=int)]
    number = {pair: i for i, pair in enumerate(order)}
    return ClassTable(
        tuple(f"{split}/{label}" for split, label in order),
        ("",) * len(order),
        {s: tuple(i for pair, i in number.items() if pair[0] == s) for s in known},
        np.array([number[pair] for pair in zip(listed.splits, listed.labels)], np.int64),
    )


def _of(found: set[str], home: Mapping[str, str]) -> str:
    there = len(found & set(home))
    return f" ({there} of its {len(home)} classes are there)"
