"""How the window of a convolution or of a pooling slides over pictures.

Axes: [H', W'] positions of the window, [kh, kw] of the window.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

from torch import nn

__all__ = ["Window", "tiles_of", "window_of"]


class Window(NamedTuple):
    """How a window slides: ``(down, across)`` each; padding ``((top, bottom), (left, right))``."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]

    def positions(self, height: int, width: int) -> tuple[int, int]:
        """H', W' on a picture of that size."""
        down, across = (
            (length + sum(pad) - dilation * (size - 1) - 1) // stride + 1
            for length, size, stride, pad, dilation in zip((height, width), *self)
        )
        return down, across

    def reach(self, height: int, width: int) -> tuple[_Reach, _Reach]:
        """What it reads of each axis of a picture of that size."""
        down, across = (
            _reach(length, *axis)
            for length, *axis in zip((height, width), self.positions(height, width), *self)
        )
        return down, across

    def numbers(self, height: int, width: int, channels: int) -> tuple[int, ...]:
        """How it slides over pictures ``[H, W, C]``, as core/native/columns.cpp wants it."""
        (above, _), (before, _) = self.padding
        shape = height, width, channels, *self.positions(height, width)
        return *shape, *self.size, *self.stride, above, before, *self.dilation

    @property
    def is_valid(self) -> bool:
        """Whether torch takes its settings; of others it says what is wrong with them."""
        counts = *self.size, *self.stride, *self.dilation
        return min(counts) >= 1 and min(map(min, self.padding)) >= 0

    def fits(self, height: int, width: int) -> bool:
        """Whether it has a place on a picture of that size."""
        return self.is_valid and min(self.positions(height, width)) >= 1

    @property
    def is_pixel(self) -> bool:
        """Whether the window is one pixel, visited in order: columns are the picture itself."""
        return self.size == self.stride == (1, 1) and self.padding == ((0, 0), (0, 0))


def window_of(size: Any, stride: Any, padding: Any, dilation: Any) -> Window:
    """The window of a convolution with torch's settings."""
    size = _pair(size)
    stride, dilation = _pair(stride), _pair(dilation)
    if padding == "valid":
        pads: Any = ((0, 0), (0, 0))
    elif padding == "same":
        totals = [d * (s - 1) for d, s in zip(dilation, size)]
        pads = tuple((total // 2, total - total // 2) for total in totals)
    else:
        pads = tuple((p, p) for p in _pair(padding))
    return Window(size, stride, pads, dilation)


def tiles_of(pool: nn.MaxPool2d, height: int, width: int) -> tuple[int, int] | None:
    """The size of windows that lie side by side within pictures of that size; None if they do not.

    What is left of a picture, less than a window, is read by none.
    """
    stride = pool.kernel_size if pool.stride is None else pool.stride
    if isinstance(pool.padding, str):
        return None  # that is of convolutions
    try:
        window = window_of(pool.kernel_size, stride, pool.padding, pool.dilation)
        is_plain = window == window_of(window.size, window.size, 0, 1) and not pool.ceil_mode
        fits = is_plain and len(window.size) == 2 and window.fits(height, width)
    except TypeError:
        return None  # torch says what is wrong
    return window.size if fits else None


class _Reach(NamedTuple):
    """Along one axis: how many pixels are read, the border's among them, and which are real."""

    length: int
    start: int
    stop: int


def _reach(
    length: int, positions: int, size: int, stride: int, pads: tuple[int, int], apart: int
) -> _Reach:
    read = (positions - 1) * stride + apart * (size - 1) + 1
    return _Reach(read, min(pads[0], read), min(pads[0] + length, read))


def _pair(value: Any) -> tuple[int, int]:
    both = (int(value), int(value)) if isinstance(value, Integral) else tuple(value)
    return both if len(both) == 2 else both * 2
