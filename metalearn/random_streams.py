"""Random numbers that belong to an address (seed, place, index) and to nothing else, or to nobody.

Of an address, only the raw stream of a Philox counter is used, which NumPy guarantees never to
change; the draws are made from it here, so the same address gives the same numbers with any
version, on any machine. Places are the three splits of tasks and the uses below; no two share a
stream. What nobody may guess comes from a cryptographically secure generator.

Axes: none; a stream is one-dimensional.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from metalearn.errors import SettingError
from metalearn.types import Split

try:
    from ssl import RAND_bytes as _random_bytes
except ImportError:  # a Python without OpenSSL
    from os import urandom as _random_bytes

__all__ = [
    "AddressedStream",
    "Purpose",
    "SecureStream",
    "Stream",
    "check_seed",
    "check_split",
    "uniform_of_each",
]

Purpose = Literal[
    "division",
    "order",
    "bootstrap",
    "augmentation",
    "noise",
    "samples",
    "affine",
    "rates",
    "mixture",
    "sizes",
    "subsets",
    "projection",
    "labels",
    "runs",
    "distilled",
    "scores",
]
"""What random numbers beside those of tasks are for."""

_SPLIT_NUMBER = {name: number for number, name in enumerate(get_args(Split))}
_PURPOSE_NUMBER = {name: number for number, name in enumerate(get_args(Purpose))}
_NO_SPLIT = 3  # the place in the two lowest bits of a key that no split has: the uses share it


class Stream(ABC):
    """Draws that are made of random words."""

    @abstractmethod
    def words(self, count: int) -> NDArray[np.uint64]:
        """``[count]`` of 64 random bits."""

    def uniform(self, count: int) -> np.ndarray:
        """``[count]`` float64 in [0, 1), multiples of 2^-53."""
        return _as_uniform(self.words(count))

    def without_replacement(self, population: int, count: int) -> list[int]:
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

    def permutation(self, population: int) -> NDArray[np.int64]:
        """``[population]``, all whole numbers below ``population`` in random order.

        The order of as many 64-bit draws, whose lowest bits give way to the number they stand for:
        no two are equal, and one sort of values, faster than a sort of places, does it. The bias
        is below population^3 / 2^64.
        """
        number = np.arange(population, dtype=np.uint64)
        bits = np.uint64(max(population - 1, 0).bit_length())
        words = (self.words(population) >> bits << bits) | number
        words.sort()
        return (words & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)

    def with_replacement(self, population: int, count: int) -> NDArray[np.int64]:
        """``[count]`` independent whole numbers below ``population``.

        The bias is that of `without_replacement`.
        """
        return (self.uniform(count) * population).astype(np.int64)


class SecureStream(Stream):
    """Draws that nobody can repeat or foretell: another series each time.

    The words are of OpenSSL's generator (AES-256 in counter mode, NIST SP 800-90A), which takes its
    seed from the operating system and is ten times as fast as that; where Python is without
    OpenSSL, the operating system's own.
    """

    def words(self, count: int) -> NDArray[np.uint64]:
        """``[count]`` of 64 random bits."""
        return np.frombuffer(_random_bytes(8 * count), dtype=np.uint64)


class AddressedStream(Stream):
    """A stream of draws for one address.

    Args:
        seed: 0 or above, below 2^64.
        place: ``"train"``, ``"validation"`` or ``"test"`` of tasks, or a use.
        index: of the task within the split, 0 or above, below 2^62; below 2^58 for a use.
    """

    def __init__(self, seed: int, place: Split | Purpose, index: int) -> None:
        check_seed(seed)
        # As an array: a list of a number above 2^63 and one below would pass through floats.
        key = np.array([seed, _address(place, index)], dtype=np.uint64)
        self._raw = np.random.Philox(key=key)

    def words(self, count: int) -> NDArray[np.uint64]:
        """``[count]`` of 64 random bits, those that come next."""
        return self._raw.random_raw(count)


def uniform_of_each(
    seed: int, place: Split | Purpose, indices: Iterable[int], count: int
) -> NDArray[np.float64]:
    """``[T, count]``: the first draws of `AddressedStream.uniform` of T addresses, bit for bit.

    A few draws of many addresses are worked out together: a stream takes longer to make than to
    read.

    Args:
        seed: as for `AddressedStream`.
        place: the same.
        indices: of the T addresses.
        count: how many of each.
    """
    check_seed(seed)
    numbers = [int(index) for index in indices]
    if len(numbers) < _MANY or count > _FEW:
        return np.stack([AddressedStream(seed, place, number).uniform(count) for number in numbers])
    first, step = _address(place, 0), _address(place, 1) - _address(place, 0)
    for extreme in (min(numbers), max(numbers)):
        _address(place, extreme)  # refused where it is out of range
    addresses = np.array(numbers, dtype=np.uint64) * np.uint64(step) + np.uint64(first)
    return _as_uniform(_philox(seed, addresses, count))


def check_seed(seed: int, setting: str = "seed") -> None:
    """Refuse what is not a seed: a whole number in 0..2^64-1."""
    _check_bits(setting, seed, 64)


def check_split(split: str) -> None:
    """Refuse what is not a split."""
    if not isinstance(split, str) or split not in _SPLIT_NUMBER:
        raise SettingError("split", split, f"one of {', '.join(_SPLIT_NUMBER)} is needed")


def _address(place: Split | Purpose, index: int) -> int:
    """The number of a place and an index; all differ."""
    if place in _PURPOSE_NUMBER:
        _check_bits("index", index, 58)
        return (index * 16 + _PURPOSE_NUMBER[place]) * 4 + _NO_SPLIT
    check_split(place)
    _check_bits("index", index, 62)
    return index * 4 + _SPLIT_NUMBER[place]


_MULTIPLIERS = np.array([0xD2E7470EE14C6C93, 0xCA5A826395121157], dtype=np.uint64)[:, None, None]
_INCREMENTS = np.array([0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B], dtype=np.uint64)[:, None, None]
_HALF, _LOW = np.uint64(32), np.uint64(2**32 - 1)
_ROUNDS, _BLOCK = 10, 4  # words of a block
_MANY, _FEW = 8, 128  # addresses from which, and draws up to which, all at once is faster


def _as_uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Multiples of 2^-53 in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _philox(seed: int, addresses: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """``[T, count]`` words of Philox4x64-10 with keys (seed, address), as NumPy gives them.

    A block of four words is that of a counter, which starts at 1. The even and the odd words of all
    blocks are arrays ``[2, T, blocks]``.

    Source: Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
    """
    blocks, low, high = -(-count // _BLOCK), _MULTIPLIERS & _LOW, _MULTIPLIERS >> _HALF
    key = np.empty((2, len(addresses), 1), dtype=np.uint64)
    key[0], key[1, :, 0] = seed, addresses
    even, odd = np.zeros((2, 2, len(addresses), blocks), dtype=np.uint64)
    even[0] = np.arange(1, blocks + 1, dtype=np.uint64)
    for _ in range(_ROUNDS):
        least, most = even & _LOW, even >> _HALF  # products of 128 bits, by halves of 64
        middle = most * low + (least * low >> _HALF)
        upper = most * high + (middle >> _HALF) + ((least * high + (middle & _LOW)) >> _HALF)
        even, odd = upper[::-1] ^ odd ^ key, (even * _MULTIPLIERS)[::-1]
        key = key + _INCREMENTS
    words = np.stack([even[0], odd[0], even[1], odd[1]], -1)
    return words.reshape(len(addresses), -1)[:, :count]


def _check_bits(setting: str, value: int, bits: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**bits:
        raise SettingError(setting, value, f"a whole number in 0..2^{bits}-1 is needed")
