"""Random numbers that belong to an address (seed, split, index) and to nothing else.

Only the raw stream of a Philox counter is used, which NumPy guarantees never to change; the draws
are made from it here, so the same address gives the same task with any version, on any machine.
"""

from __future__ import annotations

from typing import get_args

import numpy as np

from metalearn.errors import SettingError
from metalearn.types import Split

__all__ = ["AddressedStream", "check_seed", "check_split"]

_SPLIT_NUMBER = {name: number for number, name in enumerate(get_args(Split))}


class AddressedStream:
    """A stream of draws for one address.

    Args:
        seed: 0 or above, below 2^64.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        index: of the task within the split, 0 or above, below 2^62.
    """

    def __init__(self, seed: int, split: Split, index: int) -> None:
        check_split(split)
        check_seed(seed)
        _check_bits("index", index, 62)
        self._raw = np.random.Philox(key=[seed, index * 4 + _SPLIT_NUMBER[split]])

    def uniform(self, count: int) -> np.ndarray:
        """``[count]`` float64 in [0, 1), multiples of 2^-53."""
        return (self._raw.random_raw(count) >> np.uint64(11)) * 2.0**-53

    def distinct(self, population: int, count: int) -> list[int]:
        """``count`` different whole numbers below ``population``, in random order.

        The first steps of a Fisher-Yates shuffle; the bias is below population / 2^53.
        """
        moved: dict[int, int] = {}
        drawn = []
        for i, u in enumerate(self.uniform(count)):
            j = i + int(u * (population - i))
            drawn.append(moved.get(j, j))
            moved[j] = moved.get(i, i)
        return drawn


def check_seed(seed: int) -> None:
    """Refuse what is not a seed: a whole number in 0..2^64-1."""
    _check_bits("seed", seed, 64)


def check_split(split: str) -> None:
    """Refuse what is not a split."""
    if split not in _SPLIT_NUMBER:
        raise SettingError("split", split, f"one of {', '.join(_SPLIT_NUMBER)} is needed")


def _check_bits(setting: str, value: int, bits: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**bits:
        raise SettingError(setting, value, f"a whole number in 0..2^{bits}-1 is needed")
