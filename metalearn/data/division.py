"""Dividing the samples of each class into training, validation and test.

Axes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metalearn.errors import DataError, SettingError
from metalearn.random_streams import AddressedStream
from metalearn.types import Split

__all__ = ["check_fraction", "check_fractions", "divide_samples", "stratified_splits"]


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
