"""Which drawings look alike: how much ink of one finds no ink of the other close by.

Axes: L letters, [height, width] pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["pick_distinct", "stray_ink"]

_INK = 128
"""A pixel at least this bright counts as ink that must be explained."""

_TRACE = 64
"""A pixel at least this bright explains ink on itself and on its eight neighbours."""


def stray_ink(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share of ink that finds no ink of the other picture within one pixel.

    d(a, b) = max(|A outside B grown by a pixel| / |A|, the same with a and b exchanged):
    0 for drawings that differ in the weight of the pen or in where a pixel's edge fell,
    1 for drawings that never meet. Counts are whole, so the result is exact.

    Args:
        pictures: ``[L, height, width]`` uint8, each with some ink.

    Returns:
        ``[L, L]``, symmetric, zero on the diagonal.
    """
    count = len(pictures)
    ink = (pictures >= _INK).reshape(count, -1).astype(np.float32)
    bare = 1 - _grow(pictures >= _TRACE).reshape(count, -1).astype(np.float32)
    # Float32 holds whole numbers up to 2^24 exactly, whatever the order of summing.
    stray = (ink @ bare.T).astype(np.float64) / ink.sum(axis=1, dtype=np.float64)[:, None]
    distances: NDArray[np.float64] = np.maximum(stray, stray.T)
    return distances


def pick_distinct(distances: NDArray[np.floating[Any]], *, threshold: float) -> list[int]:
    """Letters, in order, that lie at least ``threshold`` from every letter picked before.

    Args:
        distances: ``[L, L]``, symmetric; rows stand in order of precedence.
        threshold: the smallest distance that two picked letters may have.

    Returns:
        Ascending indices; of a set that looks alike the first stays.
    """
    free = np.ones(len(distances), dtype=bool)
    picked = []
    for letter in range(len(distances)):
        if free[letter]:
            picked.append(letter)
            free &= distances[letter] >= threshold
    return picked


def _grow(ink: NDArray[np.bool_]) -> NDArray[np.bool_]:
    height, width = ink.shape[1:]
    padded = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
    grown = np.zeros_like(ink)
    for row in range(3):
        for column in range(3):
            grown |= padded[:, row : row + height, column : column + width]
    return grown
