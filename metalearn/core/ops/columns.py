"""Sliding windows of channels-last pictures as rows of a matrix, and back.

A convolution is a product of windows with weights; these copies are what makes it one. Whole rows
of a window are copied at once, which is several times faster than ``F.unfold`` and ``F.fold``; by
the compiled functions of `metalearn.core.native` in one pass, where they are there.
Axes: n pictures (tasks and samples together), [H, W, C] of a picture, [H', W'] positions of the
window, [kh, kw] of the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.core.native import Kernels, WindowNumbers, kernels_for, window_numbers
from metalearn.core.ops.strips import patches_of
from metalearn.core.ops.windows import Window

__all__ = ["Columns", "relu_backward", "to_columns"]


def to_columns(pictures: Tensor, window: Window) -> Tensor:
    """``[n, H, W, C]`` to ``[n, H', W', kh·kw·C]``: the window's content at each position."""
    if window.is_pixel:
        return pictures
    columns = Columns(pictures, window, (len(pictures), 1, *pictures.shape[1:]))
    return columns.of(pictures[:, None]).view(len(pictures), *columns.positions, -1)


class Columns:
    """Columns of pictures of one shape, some tasks at a time, in memory that is used again.

    Axes: t tasks, no more than were announced, B samples, N = B·H'·W', K = kh·kw·C.
    """

    def __init__(
        self, like: Tensor, window: Window, shape: Sequence[int], *others: Tensor | None
    ) -> None:
        """For pictures ``[T, B, H, W, C]``, T as many tasks as ever come at a time.

        What comes is like one tensor, and like the ``others`` where these may be of other kinds.
        """
        self.window = window
        tasks, samples, height, width, channels = shape
        self.positions = down, across = window.positions(height, width)
        length = window.size[0] * window.size[1] * channels
        self._columns = like.new_empty(tasks, samples * down * across, length)
        kernels = None if window.is_pixel else kernels_for(like, *others)
        self._passes: _Kernels | _Copies = (
            _Copies(self._columns, window, shape)
            if kernels is None
            else _Kernels(kernels, _numbers(window, height, width, channels))
        )

    def of(self, pictures: Tensor, gate: Tensor | None = None) -> Tensor:
        """``[t, B, H, W, C]`` to ``[t, N, K]``, which holds until anything else is called.

        With a ``gate`` like the pictures, of pictures where it is above 0 and of 0 elsewhere.
        """
        if self.window.is_pixel:
            return (pictures if gate is None else relu_backward(pictures, gate)).flatten(1, 3)
        columns = self.memory(len(pictures))
        self._passes.fill(columns, pictures, gate)
        return columns

    def memory(self, tasks: int) -> Tensor:
        """``[t, N, K]`` to be filled for `add_up`."""
        return self._columns[:tasks]

    def add_up(self, pictures: Tensor, gate: Tensor | None = None) -> Tensor:
        """Transpose of `of`: writes what `memory` holds to ``[t, B, H, W, C]``, contiguous."""
        columns = self.memory(len(pictures))
        if not self.window.is_pixel:
            self._passes.add_up(columns, pictures, gate)
        elif gate is None:
            pictures.copy_(columns.view_as(pictures))
        else:
            relu_backward(columns.view_as(pictures), gate, out=pictures)
        return pictures


@lru_cache(maxsize=1024)
def _numbers(window: Window, height: int, width: int, channels: int) -> WindowNumbers:
    return window_numbers(window.numbers(height, width, channels))


class _Kernels(NamedTuple):
    """Filled and added up in one pass each."""

    functions: Kernels
    numbers: WindowNumbers

    def fill(self, columns: Tensor, pictures: Tensor, gate: Tensor | None) -> None:
        pictures, gate = pictures.contiguous(), None if gate is None else gate.contiguous()
        self.functions.to_columns(pictures, gate, columns, self.numbers)

    def add_up(self, columns: Tensor, pictures: Tensor, gate: Tensor | None) -> None:
        gate = None if gate is None else gate.contiguous()
        self.functions.add_up(columns, gate, pictures, self.numbers)


class _Copies:
    """Filled and added up by strided copies of torch."""

    def __init__(self, columns: Tensor, window: Window, shape: Sequence[int]) -> None:
        self.window = window
        self._columns, self._positions = columns, window.positions(*shape[2:4])
        self._padded, self._inside = _bordered(columns, shape, window)
        self._patches, self._is_covered = patches_of(window, *shape[2:])
        self._views: dict[int, _Views] = {}

    def fill(self, columns: Tensor, pictures: Tensor, gate: Tensor | None) -> None:
        _, by_window, windows, inside, _ = self._views_of(len(pictures))
        if inside.shape != pictures.shape:  # the window leaves out the last rows
            read = (..., slice(inside.shape[2]), slice(inside.shape[3]), slice(None))
            pictures, gate = pictures[read], None if gate is None else gate[read]
        if gate is None:
            inside.copy_(pictures)
        else:
            relu_backward(pictures, gate, out=inside)
        by_window.copy_(windows)

    def add_up(self, columns: Tensor, pictures: Tensor, gate: Tensor | None) -> None:
        if not self._is_covered:
            pictures.zero_()
        start = pictures.storage_offset()
        for patch, piece in zip(self._patches, self._views_of(len(pictures)).pieces):
            target = pictures.as_strided(piece.shape, patch.strides, start + patch.start)
            if self._is_covered and patch.leads:
                target.copy_(piece)
            else:
                target.add_(piece)
        if gate is not None:
            relu_backward(pictures, gate, out=pictures)

    def _views_of(self, tasks: int) -> _Views:
        """Made once for each number of tasks."""
        if tasks not in self._views:
            self._views[tasks] = self._look_at(tasks)
        return self._views[tasks]

    def _look_at(self, tasks: int) -> _Views:
        columns, padded = self._columns[:tasks], self._padded[:tasks]
        (rows, cols), (step_down, step_across), _, (apart_down, apart_across) = self.window
        down, across = self._positions
        _, samples, height, width, channels = padded.shape
        row, n = width * channels, tasks * samples
        shape = [n, down, across, rows, cols, channels]
        strides = [height * row, step_down * row, step_across * channels]
        strides += [apart_down * row, apart_across * channels, 1]
        if apart_across == 1:  # a row of the window lies in one piece
            shape[4:], strides[4:] = [cols * channels], [1]
        windows, by_window = padded.as_strided(shape, strides), columns.view(shape)
        here = (*by_window.stride()[:3], cols * channels, channels)
        pieces = [
            columns.as_strided(
                (n, y.visits, y.width, x.visits, x.width, channels),
                (here[0], here[1], here[3], here[2], here[4], 1),
                y.first * here[1] + x.first * here[2] + y.offset * here[3] + x.offset * here[4],
            )
            for y, x in (patch.strips for patch in self._patches)
        ]
        return _Views(columns, by_window, windows, self._inside[:tasks], pieces)


class _Views(NamedTuple):
    """What `Columns` looks at for one number of tasks."""

    columns: Tensor
    """``[t, N, K]``."""
    by_window: Tensor
    """The same as ``[t·B, H', W', kh, kw·C]``; with dilation ``[…, kh, kw, C]``."""
    windows: Tensor
    """The bordered pictures, each position's window: of the same shape."""
    inside: Tensor
    """The bordered pictures without their border."""
    pieces: list[Tensor]
    """The columns as each `Patch` wants them."""


def _bordered(like: Tensor, shape: Sequence[int], window: Window) -> tuple[Tensor, Tensor]:
    """Memory for what a window reads of pictures, its border zero already; what lies inside."""
    *lead, height, width, channels = shape
    down, across = window.reach(height, width)
    padded = like.new_empty(*lead, down.length, across.length, channels)
    rows = padded[..., down.start : down.stop, :, :]
    for border in (
        padded[..., : down.start, :, :],
        padded[..., down.stop :, :, :],
        rows[..., : across.start, :],
        rows[..., across.stop :, :],
    ):
        if border.numel():
            border.zero_()
    return padded, rows[..., across.start : across.stop, :]


def relu_backward(x: Tensor, gate: Tensor, *, out: Tensor | None = None) -> Tensor:
    """X where ``gate`` is above 0, else 0: the derivative of a ReLU at ``gate`` times x."""
    y: Tensor = _mask(x, gate, 0) if out is None else _mask_into(x, gate, 0, grad_input=out)
    return y


_mask = torch.ops.aten.threshold_backward.default
_mask_into = torch.ops.aten.threshold_backward.grad_input
