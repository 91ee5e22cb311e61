"""Gaussian noise that nobody can take off again.

Axes: P parameters, all elements of all leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.core.float64 import has_float64
from metalearn.core.tree import check_floating, flatten, unflatten
from metalearn.random_streams import SecureStream
from metalearn.signatures import checked

__all__ = ["add_gaussian_noise", "gaussian_noise", "noisy_leaves", "standard_normal"]

Words = Callable[[int], NDArray[np.uint64]]

_CHUNK = 2**14  # values at a time: what they take stays in the processor's cache
_MORE = 1.3  # points of a square for one in its circle: 4/π, and some for chance
_ONE = np.uint64(0x3FF0000000000000)  # the sign and exponent of float64 in [1, 2)


@checked
def add_gaussian_noise(sums: Any, std: float, *, generator: torch.Generator | None = None) -> Any:
    """A tree of sums plus `gaussian_noise`, added in float64 and rounded once.

    Rounded before they are added, a sum and its noise that nearly cancel would leave the last bits
    of the sum to be read; rounded after, every number of the leaves' type is within reach of every
    sum, but for leaves of float64.

    Args:
        sums: a tree of floating-point tensors, P elements in all; left as it is.
        std: the standard deviation, at least 0.
        generator: of the bits; None takes the secure one.

    Returns:
        The tree with noise, of the shapes, types and devices of ``sums``.

    Raises:
        SettingError: ``sums`` has other leaves, or ``std`` is out of range.
    """
    check_floating(sums, "sums")
    values, shape = flatten(sums)
    return unflatten(noisy_leaves(values, _drawn(values, std, generator)), shape)


@checked
def gaussian_noise(likes: Any, std: float, *, generator: torch.Generator | None = None) -> Any:
    """Independent normal values of mean 0, one for each element of a tree's leaves.

    Each is (±z₁ ± z₂ ± z₃ ± z₄)/2 times ``std``, z standard normal in float64 by Marsaglia's polar
    method, each of another pair of 52-bit uniforms, and is rounded to the leaf's type in the end.
    A single draw takes few of the floating-point numbers around it, so that a noisy sum may tell
    what it was without noise; to search for the draws behind a sum of four is out of reach. Where
    all leaves are shorter than float64, four draws make four values by the four orthogonal choices
    of signs, for a quarter of the time: what was rounded off hides the draws. In float64 each value
    has draws of its own.

    By default the bits come from a cryptographically secure generator on the processor, whatever
    the device of the leaves, and no two calls give the same. A seeded generator is for experiments
    that are to be repeated: its noise protects nothing, see `SeededNoise`.

    Mironov, "On Significance of the Least Significant Bits for Differential Privacy", CCS 2012;
    Holohan and Braghin, "Secure Random Sampling in Differential Privacy", ESORICS 2021.

    Args:
        likes: a tree of floating-point tensors, P elements in all.
        std: the standard deviation, at least 0.
        generator: of the bits; None takes the secure one.

    Returns:
        The tree, of the shapes, types and devices of ``likes``.

    Raises:
        SettingError: ``likes`` has other leaves, or ``std`` is out of range.
    """
    check_floating(likes, "likes")
    values, shape = flatten(likes)
    noise = _pieces(values, _drawn(values, std, generator))
    return unflatten(
        [piece.to(value.device, value.dtype) for piece, value in zip(noise, values)], shape
    )


def standard_normal(values: list[Tensor], generator: torch.Generator | None) -> Tensor:
    """``[P]`` in float64 on the processor, of standard deviation 1, for leaves of these types."""
    words = SecureStream().words if generator is None else _seeded(generator)
    make = _sums if any(value.dtype == torch.float64 for value in values) else _mixed
    return torch.from_numpy(make(words, sum(value.numel() for value in values)))


def noisy_leaves(values: list[Tensor], noise: Tensor) -> list[Tensor]:
    """Leaves plus noise ``[P]`` of float64, added in float64 and rounded once."""
    pieces = _pieces(values, noise)
    return [_wide(value).add(piece).to(value.device, value.dtype)
            for value, piece in zip(values, pieces)]  # fmt: skip


def _drawn(values: list[Tensor], std: float, generator: torch.Generator | None) -> Tensor:
    """``[P]``, the noise of all leaves in float64."""
    check_number("std", std, least=0)
    return standard_normal(values, generator).mul_(float(std))


def _place(value: Tensor) -> torch.device:
    """Its device, where that has float64; else the processor."""
    return value.device if has_float64(value.device) else torch.device("cpu")


def _wide(value: Tensor) -> Tensor:
    return value.detach().to(_place(value)).double()


def _pieces(values: list[Tensor], noise: Tensor) -> list[Tensor]:
    """The noise of each leaf, where it is added."""
    pieces = torch.split(noise, [value.numel() for value in values])
    return [piece.view(value.shape).to(_place(value)) for piece, value in zip(pieces, values)]


def _mixed(words: Words, count: int) -> NDArray[np.float64]:
    """``[count]`` standard normal values: of four draws four, by an orthogonal matrix of ±1/2."""
    found = np.empty(count)
    for first in range(0, count, _CHUNK):
        piece = found[first : first + _CHUNK]
        row = -(-len(piece) // 8)
        pairs = np.stack(_pairs(words, 4 * row)).reshape(2, 4, row)
        even, odd = pairs[:, 0::2] + pairs[:, 1::2], pairs[:, 0::2] - pairs[:, 1::2]
        halves = np.stack([even, odd])  # [2, 2, 2, row]: of signs, of a pair, of the two sums
        mixed = np.stack([halves[:, :, 0] + halves[:, :, 1], halves[:, :, 0] - halves[:, :, 1]])
        piece[:] = mixed.reshape(-1)[: len(piece)]
    found *= 0.5
    return found


def _sums(words: Words, count: int) -> NDArray[np.float64]:
    """``[count]`` standard normal values, each of four draws of different pairs that no other has.

    Both values of a pair are used, in different sums.
    """
    found = np.empty(count)
    for first in range(0, count, _CHUNK):
        piece = found[first : first + _CHUNK]
        half = -(-len(piece) // 2)
        one, other = (normal.reshape(4, half) for normal in _pairs(words, 4 * half))
        piece[:half] = one[0] + one[1] + other[2] + other[3]
        piece[half:] = (other[0] + other[1] + one[2] + one[3])[: len(piece) - half]
    found *= 0.5
    return found


def _pairs(words: Words, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Twice ``[count]`` independent standard normal values, by Marsaglia's polar method.

    Points of the square (−1, 1)² that lie in the circle, at distance √s from the centre, are moved
    along their rays to √(−2·log s). No coordinate is 0: they are odd multiples of 2^-52.
    """
    found: list[NDArray[np.float64]] = []
    left = count
    while left > 0:
        drawn = int(_MORE * left) + 64
        bits = (words(2 * drawn) >> np.uint64(12)) | _ONE
        points = bits.view(np.float64)
        points -= 1.5
        points += 2.0**-53
        points *= 2.0
        square = points.reshape(2, drawn)
        s = square[0] * square[0]
        s += square[1] * square[1]
        inside = np.flatnonzero(s < 1)[:left]
        s = s.take(inside)
        moved = np.log(s)
        moved /= s
        moved *= -2.0
        found.append(square.take(inside, axis=1) * np.sqrt(moved))
        left -= len(inside)
    every = found[0] if len(found) == 1 else np.concatenate(found, axis=1)
    return every[0], every[1]


def _seeded(generator: torch.Generator) -> Words:
    """Words of a generator of torch, on whatever device it is."""

    def words(count: int) -> NDArray[np.uint64]:
        bits = torch.randint(
            -(2**63), 2**63 - 1, (count,), generator=generator, device=generator.device
        )
        return bits.cpu().numpy().view(np.uint64)

    return words
