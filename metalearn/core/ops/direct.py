"""Convolution of large pictures by torch's own for a processor, one task after another.

Of channels-last pictures that one needs no columns, which large pictures have too many of for a
cache; some samples at a time, so that what it gives is in the cache when it is copied to its place.
It is taken in float32, where windows overlap, positions are many beside the weights of an output
and outputs few; other layers are faster by columns, and so is the cotangent of the weight of many
channels.
Values and derivatives are those of `metalearn.core.ops.convolution`, which explains the arguments.
Axes: T tasks, B samples, [H, W, C] of a picture, N = B·H'·W' positions, K = kh·kw·C, O output
channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.core.ops.columns import relu_backward
from metalearn.core.ops.windows import Window

__all__ = ["Direct", "direct_for"]

_WORTH = 2**20  # bytes of a task's columns: of fewer, products are as fast
_OUTPUTS = 128  # at most: losses of 1.1-3 times were measured from 160 on, wins up to 128
_MANY = 1024  # weights of a place in the window, from which their cotangents are faster by columns
_BLOCK = 2**20  # bytes of pictures at a time and thread
_TYPES = {torch.float32}  # those that the library of torch's convolutions has

_convolution = torch.ops.aten.convolution.default
_backward = torch.ops.aten.convolution_backward.default


def direct_for(
    like: Tensor, window: Window, rectify: bool, shape: tuple[int, ...], outputs: int
) -> Direct | None:
    """The way without columns for pictures ``[T, B, H, W, C]``; None where columns are as good."""
    _, samples, height, width, channels = shape
    positions = samples * math.prod(window.positions(height, width))
    length = math.prod(window.size) * channels
    if (
        positions * length * like.element_size() < _WORTH
        or math.prod(window.size) < 2 * math.prod(window.stride)  # columns are not much more than x
        or positions < length
        or not 1 <= outputs <= _OUTPUTS
        or like.device.type != "cpu"
        or like.dtype not in _TYPES
        or any(before != after for before, after in window.padding)
        or not (torch._C._has_mkldnn and torch.backends.mkldnn.enabled)
    ):
        return None
    return Direct(window, rectify, shape, outputs)


class _Part(NamedTuple):
    """Some samples of one task."""

    task: int
    samples: slice
    positions: slice
    """Of N, those of the samples."""


class Direct:
    """A convolution of pictures of one shape and its derivatives.

    Attributes:
        weighs: whether it gives cotangents of the weight, which are faster by columns elsewhere.
    """

    def __init__(self, window: Window, rectify: bool, shape: tuple[int, ...], outputs: int) -> None:
        self.window, self.rectify, self.shape, self.outputs = window, rectify, shape, outputs
        self._positions = window.positions(*shape[2:4])
        self.weighs = shape[4] * outputs < _MANY
        padding = [before for before, _ in window.padding]
        lists = [list(window.stride), padding, list(window.dilation)]
        self._how = (*lists, False, [0, 0], 1)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``[T, N, O]``."""
        z = self._new_slopes(x)
        for part in self._parts(x):
            given = self._seen(x, x, part)
            z[part.task, part.positions] = self._product(given, weight[part.task])
            if bias is not None:
                z[part.task, part.positions] += bias[part.task]
        return z

    def backward(
        self, dz: Tensor, x: Tensor, weight: Tensor, want: tuple[bool, ...]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Dx and dw, those that are wanted; dw only if it `weighs`."""
        dx = x.new_empty(self.shape) if want[0] else None
        dweight = torch.zeros_like(weight) if want[1] and self.weighs else None
        if dx is None and dweight is None:
            return None, None
        for part in self._parts(x):
            if dweight is not None:
                dweight[part.task] += self._of_weight(dz, self._seen(x, x, part), part)
            if dx is not None:
                self._back(dz, weight, x, dx, part)
        return dx, dweight

    def second(
        self,
        u: tuple[Tensor | None, Tensor | None, Tensor | None],
        dz: Tensor,
        x: Tensor,
        weight: Tensor,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Cotangents of dz, x and w along u, those of dx, dw and db; where they are wanted.

        That of w only if it `weighs`.
        """
        ux, uw, ub = u
        gdz = self._new_slopes(x) if wanted[0] else None
        gx = x.new_empty(self.shape) if wanted[1] and uw is not None else None
        needs_gweight = wanted[2] and ux is not None and self.weighs
        gweight = torch.zeros_like(weight) if needs_gweight else None
        for part in self._parts(x):
            total: Tensor | None = None
            if ux is not None:
                given = self._seen(ux, x, part)
                if gweight is not None:
                    gweight[part.task] += self._of_weight(dz, given, part)
                if gdz is not None:
                    total = self._product(given, weight[part.task])
            if uw is not None and gdz is not None:
                product = self._product(self._seen(x, x, part), uw[part.task])
                total = product if total is None else total.add_(product)
            if gdz is not None:
                gdz[part.task, part.positions] = 0 if total is None else total
                if ub is not None:
                    gdz[part.task, part.positions] += ub[part.task]
            if gx is not None and uw is not None:
                self._back(dz, uw, x, gx, part)
        return gdz, gx, gweight

    def _parts(self, like: Tensor) -> Iterator[_Part]:
        """As few of about the same size as are no larger than a block."""
        count, samples, *picture = self.shape
        each = math.prod(self._positions)
        size = max(each * self.outputs, math.prod(picture)) * like.element_size()
        most = max(1, _BLOCK * torch.get_num_threads() // size)
        together = -(-samples // -(-samples // most))
        for task in range(count):
            for first in range(0, samples, together):
                last = min(first + together, samples)
                yield _Part(task, slice(first, last), slice(first * each, last * each))

    def _new_slopes(self, x: Tensor) -> Tensor:
        count, samples = self.shape[:2]
        return x.new_empty(count, samples * math.prod(self._positions), self.outputs)

    def _seen(self, pictures: Tensor, gate: Tensor, part: _Part) -> Tensor:
        """``[b, C, H, W]``, channels last; with a ReLU, where ``gate`` is above 0."""
        given = pictures[part.task, part.samples]
        if self.rectify:
            given = relu_backward(given, gate[part.task, part.samples])
        return given.contiguous().permute(0, 3, 1, 2)

    def _kernel(self, weight: Tensor) -> Tensor:
        """``[O, K]`` as ``[O, C, kh, kw]``, channels last."""
        shape = self.outputs, *self.window.size, self.shape[-1]
        return weight.reshape(shape).permute(0, 3, 1, 2)

    def _slopes(self, dz: Tensor, part: _Part) -> Tensor:
        """``[b, O, H', W']``, channels last."""
        own = dz[part.task, part.positions].contiguous()
        samples = part.samples.stop - part.samples.start
        return own.view(samples, *self._positions, self.outputs).permute(0, 3, 1, 2)

    def _product(self, pictures: Tensor, weight: Tensor) -> Tensor:
        """``[n, O]``."""
        z: Tensor = _convolution(pictures, self._kernel(weight), None, *self._how)
        return z.permute(0, 2, 3, 1).flatten(0, 2)

    def _of_weight(self, dz: Tensor, pictures: Tensor, part: _Part) -> Tensor:
        """``[O, K]``: the cotangent of the weight."""
        kernel = pictures.new_empty(self.outputs, *self.window.size, pictures.shape[1])
        given = self._slopes(dz, part), pictures, kernel.permute(0, 3, 1, 2), None, *self._how
        dweight: Tensor = _backward(*given, [False, True, False])[1]
        return dweight.permute(0, 2, 3, 1).flatten(1)

    def _back(self, dz: Tensor, weight: Tensor, gate: Tensor, out: Tensor, part: _Part) -> None:
        """Write the cotangent of pictures to a part of ``out``."""
        own, target = gate[part.task, part.samples], out[part.task, part.samples]
        kernel = self._kernel(weight[part.task])
        given = self._slopes(dz, part), own.permute(0, 3, 1, 2), kernel, None, *self._how
        dx: Tensor = _backward(*given, [True, False, False])[0].permute(0, 2, 3, 1)
        target.copy_(relu_backward(dx, own) if self.rectify else dx)
