"""What the windows of a picture write of it, in as few strided copies as there are.

The transpose of taking windows adds every window up where it was read; offsets of a window that are
neighbours and write side by side are added at once.

Axes: [H, W, C] of a picture, [H', W'] positions of the window, [kh, kw] of the window.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple

from metalearn.core.ops.windows import Window

__all__ = ["Patch", "patches_of"]


class Patch(NamedTuple):
    """Where one strip down and one across meet: what they write of a picture."""

    strips: tuple[_Strip, _Strip]
    leads: bool
    """Whether it is of those that are written first; these do not overlap."""
    strides: tuple[int, ...]
    """Of a picture: pictures, then visits and width down, then across, then channels."""
    start: int
    """In elements from the beginning of the picture."""


def patches_of(window: Window, height: int, width: int, channels: int) -> tuple[list[Patch], bool]:
    """All patches, those that lead in front, and whether these cover the picture."""
    down, across = window.positions(height, width)
    (rows, cols), (step_down, step_across), (above, before), apart = window
    vertical = _strips(height, down, rows, step_down, above[0], apart[0])
    horizontal = _strips(width, across, cols, step_across, before[0], apart[1])
    row = width * channels
    strides = (height * row, step_down * row, row, step_across * channels, channels, 1)
    patches = [
        Patch((y, x), y.leads and x.leads, strides, y.pixel * row + x.pixel * channels)
        for y, x in product(vertical, horizontal)
    ]
    is_covered = all(
        sum(s.visits * s.width for s in strips if s.leads) == size
        for strips, size in ((vertical, height), (horizontal, width))
    )
    return patches, is_covered


class _Strip(NamedTuple):
    """Offsets of a window that are neighbours and write side by side, at some of its positions."""

    leads: bool
    """Whether it is of those that are written first; these do not overlap."""
    offset: int
    """The first of the offsets."""
    width: int
    """How many."""
    first: int
    """The first of the positions."""
    visits: int
    """How many."""
    pixel: int
    """What the first offset touches at the first position."""


@lru_cache(maxsize=1024)
def _strips(
    length: int, positions: int, size: int, stride: int, pad: int, apart: int
) -> tuple[_Strip, ...]:
    """One axis of a window, in as few strips as there are, those that lead in front.

    At most ``stride`` neighbours stand together, so that what one strip writes does not overlap;
    they begin where a position begins to cover the picture without a gap.
    """
    starts = [o for o in range(size) if apart > 1 or o == 0 or (o - pad) % stride == 0]
    groups = [
        _clipped(length, positions, stride, offset, stop - offset, offset * apart - pad)
        for offset, stop in zip(starts, [*starts[1:], size])
    ]
    groups.sort(key=lambda strips: -sum(s.visits * s.width for s in strips))
    return tuple(s._replace(leads=i == 0) for i, strips in enumerate(groups) for s in strips)


def _clipped(
    length: int, positions: int, stride: int, offset: int, width: int, shift: int
) -> list[_Strip]:
    """Neighbouring offsets, the first touching position · stride + shift, within the picture."""
    strips: list[_Strip] = []
    for position in range(positions):
        start = position * stride + shift
        low, high = max(start, 0), min(start + width, length)
        if low >= high:
            continue
        strip = _Strip(False, offset + low - start, high - low, position, 1, low)
        if strips and (strips[-1].offset, strips[-1].width) == (strip.offset, strip.width):
            strips[-1] = strips[-1]._replace(visits=strips[-1].visits + 1)
        else:
            strips.append(strip)
    return strips
