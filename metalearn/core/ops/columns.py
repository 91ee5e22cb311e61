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
    n, down, across, _ = columns.shape
    columns = columns.view(n, down, across, *window.size, -1)
    pictures = columns.new_empty(n, height, width, columns.shape[-1]) if out is None else out
    (steps, pads, apart) = window.stride, window.padding, window.dilation
    vertical = _visits(height, down, window.size[0], steps[0], pads[0][0], apart[0])
    horizontal = _visits(width, across, window.size[1], steps[1], pads[1][0], apart[1])
    for (y, row_visits), (x, column_visits) in product(enumerate(vertical), enumerate(horizontal)):
        target = pictures[:, y :: steps[0], x :: steps[1]]
        fresh = True
        for (i, to_i, from_i), (j, to_j, from_j) in product(row_visits, column_visits):
            piece = columns[:, from_i, from_j, i, j]
            part = target[:, to_i, to_j]
            if fresh and part.shape == target.shape:
                part.copy_(piece)
            else:
                (target.zero_() if fresh else target)[:, to_i, to_j].add_(piece)
            fresh = False
        if fresh:
            target.zero_()
    return pictures


def bordered(like: Tensor, shape: Sequence[int], window: Window) -> Tensor:
    """Memory for pictures ``[n, H, W, C]`` and a border, which is zero already."""
    (top, bottom), (left, right) = window.padding
    n, height, width, channels = shape
    padded = like.new_empty(n, top + height + bottom, left + width + right, channels)
    padded[:, :top].zero_()
    padded[:, top + height :].zero_()
    padded[:, top : top + height, :left].zero_()
    padded[:, top : top + height, left + width :].zero_()
    return padded


Visit = tuple[int, slice, slice]
"""An offset within the window, where in its phase it writes, which positions it reads."""


@lru_cache(maxsize=1024)
def _visits(
    length: int, positions: int, size: int, stride: int, pad: int, apart: int
) -> tuple[tuple[Visit, ...], ...]:
    """For each phase of the stride, which offsets of the window reach it, the widest first."""
    phases: list[list[Visit]] = [[] for _ in range(stride)]
    for offset in range(size):
        shift = offset * apart - pad  # position p touches pixel p·stride + shift
        first = max(0, -(shift // stride))
        last = min(positions, (length - 1 - shift) // stride + 1)
        if first < last:
            pixel = first * stride + shift
            start = pixel // stride
            visit = (offset, slice(start, start + last - first), slice(first, last))
            phases[pixel % stride].append(visit)
    return tuple(tuple(sorted(p, key=lambda v: v[1].start - v[1].stop)) for p in phases)


def masked(x: Tensor, gate: Tensor, *, out: Tensor | None = None) -> Tensor:
    """x where ``gate`` is above 0, else 0: the derivative of a ReLU at ``gate`` times x."""
    if out is None:
        y: Tensor = torch.ops.aten.threshold_backward(x, gate, 0)
        return y
    return torch.ops.aten.threshold_backward.grad_input(x, gate, 0, grad_input=out)  # type: ignore[no-any-return]


def _pad(
    pictures: Tensor, window: Window, gate: Tensor | None, padded: Tensor | None
) -> Tensor:
    """Pictures with a border of zeros, contiguous."""
    if gate is None and window.padding == ((0, 0), (0, 0)):
        return pictures.contiguous()
    (top, _), (left, _) = window.padding
    height, width = pictures.shape[1:3]
    padded = bordered(pictures, pictures.shape, window) if padded is None else padded
    inside = padded[:, top : top + height, left : left + width]
    if gate is None:
        inside.copy_(pictures)
    else:
        masked(pictures, gate, out=inside)
    return padded


def _pair(value: Any) -> tuple[int, int]:
    both = (value, value) if isinstance(value, int) else tuple(value)
    return both if len(both) == 2 else both * 2
