"""Dividing classes, or the samples of each class, into training, validation and test.

Axes: N samples, C classes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from metalearn.errors import DataError, SettingError
from metalearn.random_streams import AddressedStream
from metalearn.types import Split

__all__ = [
    "check_class_fractions",
    "check_fraction",
    "check_fractions",
    "divide_classes",
    "divide_samples",
    "shuffled_splits",
    "stratified_splits",
]

_LEAST = 2  # classes of a split: a task tells at least two apart


def divide_classes(
    root: Path, names: Sequence[str], named: Sequence[str], *, validation: float, test: float
) -> dict[str, tuple[int, ...]]:
    """Split name to its classes, sorted: as the data name them, else in the order of hashes.

    Classes in the order of the SHA-256 of their names: first come ``round(test · C)`` test classes,
    at least 2, then as many by the same rule for validation; the rest is for training. A share of
    0 leaves the validation split out, a share of 1 makes all of them test classes.

    Args:
        root: of the data, for messages.
        names: of the C classes.
        named: the split of each class, or ``""`` for all where nothing names it.
        validation: share of the classes for validation.
        test: share of the classes for testing.

    Raises:
        DataError: fewer than two classes for a split.
    """
    count = len(names)
    if named[0]:
        parts = {
            split: tuple(c for c in range(count) if named[c] == split) for split in get_args(Split)
        }
    else:
        order = sorted(range(count), key=lambda c: hashlib.sha256(os.fsencode(names[c])).digest())
        first = max(_LEAST, round(test * count))
        second = first + (max(_LEAST, round(validation * count)) if validation else 0)
        parts = {"test": tuple(sorted(order[:first]))}
        if validation:
            parts = {"validation": tuple(sorted(order[first:second])), **parts}
        if test < 1:
            parts = {"train": tuple(sorted(order[second:])), **parts}
    for split, chosen in parts.items():
        if len(chosen) < _LEAST:
            raise DataError(
                f"{root}: {count} classes leave {len(chosen)} for {split}; each of "
                f"{', '.join(parts)} needs at least {_LEAST}, {len(parts) * _LEAST} classes in all"
            )
    return parts


def divide_samples(
    targets: Tensor, *, names: Sequence[str], fractions: Sequence[float], seed: int
) -> list[Tensor]:
    """Stratified division: each part holds its share of every class, and at least one sample.

    A class of n samples is put in an order that belongs to (seed, class). The first
    ``max(1, round(f_1 n))`` samples make the first part, and so on; what remains makes the last.

    Args:
        targets: ``[N]``, the class of each sample.
        names: of the classes, for messages.
        fractions: share of each class for every part but the last.
        seed: of the division.

    Returns:
        Sample indices of the ``len(fractions) + 1`` parts, int64, sorted.

    Raises:
        DataError: a class with too few samples for a part.
    """
    order = torch.argsort(targets, stable=True).numpy()
    counts = torch.bincount(targets, minlength=len(names)).tolist()
    parts: list[list[np.ndarray]] = [[] for _ in range(len(fractions) + 1)]
    end = 0
    for number, count in enumerate(counts):
        edges = np.cumsum([0] + [max(1, round(fraction * count)) for fraction in fractions])
        if edges[-1] >= count:
            raise DataError(
                f"the class {names[number]} has {count} samples, too few to give each of "
                f"{len(parts)} parts its share (fractions {', '.join(map(str, fractions))})"
            )
        own = order[end : end + count]
        end += count
        own = own[AddressedStream(seed, "division", number).permutation(count)]
        for part, low, high in zip(parts, edges, [*edges[1:], count]):
            part.append(own[low:high])
    return [torch.from_numpy(np.sort(np.concatenate(part))) for part in parts]


def stratified_splits(
    targets: Tensor,
    *,
    names: Sequence[str],
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> dict[Split, Tensor]:
    """The three splits of `ClassificationData` by `divide_samples`.

    Raises:
        SettingError: a fraction or seed out of range.
        DataError: a class with too few samples.
    """
    check_fractions(validation_fraction, test_fraction)
    test, validation, train = divide_samples(
        targets, names=names, fractions=(test_fraction, validation_fraction), seed=seed
    )
    return {"train": train, "validation": validation, "test": test}


def shuffled_splits(
    samples: int, *, validation_fraction: float, test_fraction: float, seed: int
) -> dict[Split, Tensor]:
    """The three splits of `RegressionData`: samples in an order that belongs to the seed, divided.

    Each part has at least one sample; indices are int64, sorted.

    Raises:
        SettingError: a fraction or seed out of range, or too few samples.
    """
    check_fractions(validation_fraction, test_fraction)
    order = AddressedStream(seed, "division", 0).permutation(samples)
    validation, test = (
        max(1, round(fraction * samples)) for fraction in (validation_fraction, test_fraction)
    )
    if validation + test >= samples:
        accepted = f"{validation + test} are for validation and test, so more are needed"
        raise SettingError("samples", samples, accepted)
    rest = samples - validation - test
    train, validating, testing = (
        torch.from_numpy(np.sort(part)) for part in np.split(order, [rest, rest + validation])
    )
    return {"train": train, "validation": validating, "test": testing}


def check_class_fractions(validation: float, test: float) -> None:
    """Refuse shares of classes that are none, or leave nothing for training; see `divide_classes`.

    Raises:
        SettingError: names the setting.
    """
    for name, value in (("validation_fraction", validation), ("test_fraction", test)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise SettingError(name, value, "a number from 0 to 1 is needed")
    if not test:
        raise SettingError("test_fraction", test, "a number above 0 is needed")
    if validation + test >= 1 and (validation or test < 1):
        accepted = f"with validation_fraction={validation} the sum must stay below 1"
        raise SettingError("test_fraction", test, accepted)


def check_fraction(setting: str, value: float) -> None:
    """Refuse what is not strictly between 0 and 1.

    Raises:
        SettingError: names the setting.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise SettingError(setting, value, "a number between 0 and 1 is needed")


def check_fractions(validation: float, test: float) -> None:
    """Refuse shares for validation and test that leave nothing for training.

    Raises:
        SettingError: names the setting.
    """
    check_fraction("validation_fraction", validation)
    check_fraction("test_fraction", test)
    if validation + test >= 1:
        accepted = f"with validation_fraction={validation} the sum must stay below 1"
        raise SettingError("test_fraction", test, accepted)
