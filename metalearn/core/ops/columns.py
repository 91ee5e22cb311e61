"""Sliding windows of channels-last pictures as rows of a matrix, and back.

A convolution is a product of windows with weights; these copies are what makes it one. Whole rows
of a window are copied at once, which is several times faster than ``F.unfold`` and ``F.fold``.
Axes: n pictures (tasks and samples together), [H, W, C] of a picture, [H', W'] positions of the
window, [kh, kw] of the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Window", "bordered", "from_columns", "masked", "to_columns", "window_of"]


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

    @property
    def is_pixel(self) -> bool:
        """Whether the window is one pixel, visited in order: columns are the picture itself."""
        return self.size == self.stride == (1, 1) and self.padding == ((0, 0), (0, 0))


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


def to_columns(
    pictures: Tensor,
    window: Window,
    *,
    gate: Tensor | None = None,
    padded: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``[n, H, W, C]`` to ``[n, H', W', kh·kw·C]``: the window's content at each position.

    With a ``gate [n, H, W, C]``, of pictures where it is above 0 and of 0 elsewhere. ``padded``
    from `bordered` and a contiguous ``out`` are written to where they are given.
    """
    if window.is_pixel:
        return pictures if gate is None else masked(pictures, gate)
    padded = _pad(pictures, window, gate, padded)
    n, height, width, channels = padded.shape
    down, across = window._replace(padding=((0, 0), (0, 0))).positions(height, width)
    (rows, cols), (step_down, step_across), _, (apart_down, apart_across) = window
    row = width * channels
    shape = [n, down, across, rows, cols, channels]
    strides = [height * row, step_down * row, step_across * channels]
    strides += [apart_down * row, apart_across * channels, 1]
    if apart_across == 1:  # a row of the window lies in one piece
        shape[4:], strides[4:] = [cols * channels], [1]
    windows = padded.as_strided(shape, strides, padded.storage_offset())
    if out is None:
        return windows.clone(memory_format=torch.contiguous_format).flatten(3)
    out.view(shape).copy_(windows)
    return out


def from_columns(
    columns: Tensor, window: Window, height: int, width: int, *, out: Tensor | None = None
) -> Tensor:
    """Transpose of `to_columns`: ``[n, H', W', kh·kw·C]`` summed into ``[n, H, W, C]``."""
    if window.is_pixel:
        return columns if out is None else out.copy_(columns)
    columns = columns.contiguous()
    n, down, across, length = columns.shape
    (rows, cols), (step_down, step_across), (above, before), apart = window
    channels = length // (rows * cols)
    pictures = columns.new_empty(n, height, width, channels) if out is None else out
    vertical = _strips(height, down, rows, step_down, above[0], apart[0])
    horizontal = _strips(width, across, cols, step_across, before[0], apart[1])
    fresh = all(
        sum(s.visits * s.width for s in strips if s.leads) == size
        for strips, size in ((vertical, height), (horizontal, width))
    )
    if not fresh:
        pictures.zero_()
    picture, row, pixel, element = pictures.stride()
    there = (picture, step_down * row, row, step_across * pixel, pixel, element)
    here = (*columns.stride()[:2], cols * channels, length, channels, 1)
    for y, x in product(vertical, horizontal):
        shape = (n, y.visits, y.width, x.visits, x.width, channels)
        start = pictures.storage_offset() + y.pixel * row + x.pixel * pixel
        target = pictures.as_strided(shape, there, start)
        start = columns.storage_offset() + y.first * here[1] + x.first * length
        start += (y.offset * cols + x.offset) * channels
        piece = columns.as_strided(shape, here, start)
        if fresh and y.leads and x.leads:
            target.copy_(piece)
        else:
            target.add_(piece)
    return pictures


def bordered(like: Tensor, shape: Sequence[int], window: Window) -> Tensor:
    """Memory for what a window reads of pictures ``[n, H, W, C]``, its border zero already."""
    n, height, width, channels = shape
    down, across = window.reach(height, width)
    padded = like.new_empty(n, down.length, across.length, channels)
    rows = padded[:, down.start : down.stop]
    for border, size in (
        (padded[:, : down.start], down.start),
        (padded[:, down.stop :], down.length - down.stop),
        (rows[:, :, : across.start], across.start),
        (rows[:, :, across.stop :], across.length - across.stop),
    ):
        if size:
            border.zero_()
    return padded


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


def masked(x: Tensor, gate: Tensor, *, out: Tensor | None = None) -> Tensor:
    """X where ``gate`` is above 0, else 0: the derivative of a ReLU at ``gate`` times x."""
    mask = torch.ops.aten.threshold_backward
    y: Tensor = mask(x, gate, 0) if out is None else mask.grad_input(x, gate, 0, grad_input=out)
    return y


def _pad(pictures: Tensor, window: Window, gate: Tensor | None, padded: Tensor | None) -> Tensor:
    """Pictures with a border of zeros, as far as the window reads them, contiguous."""
    if gate is None and window.padding == ((0, 0), (0, 0)):
        return pictures.contiguous()
    padded = bordered(pictures, pictures.shape, window) if padded is None else padded
    down, across = window.reach(*pictures.shape[1:3])
    inside = padded[:, down.start : down.stop, across.start : across.stop]
    height, width = inside.shape[1:3]
    pictures = pictures[:, :height, :width]
    if gate is None:
        inside.copy_(pictures)
    else:
        masked(pictures, gate[:, :height, :width], out=inside)
    return padded


def _pair(value: Any) -> tuple[int, int]:
    both = (value, value) if isinstance(value, int) else tuple(value)
    return both if len(both) == 2 else both * 2
