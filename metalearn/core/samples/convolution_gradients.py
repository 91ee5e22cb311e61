"""Gradients of convolution kernels for many samples, of any dimension and with groups.

A convolution is one affine map of windows, z = A·wᵀ + b, with a row of A for each position; the
gradient of w for one sample is Bᵀ·A, B the gradient of z. Under ``vmap`` over samples torch's own
backward takes these products one way for all shapes; here they are taken the quickest way.
Axes: N samples, n pictures of a sample, C channels, O outputs, G groups, S positions of a window,
``[...]`` one to three axes of space.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core._functorch import is_functorch_wrapped_tensor
from metalearn.core.ops.columns import to_columns
from metalearn.core.ops.windows import Window
from metalearn.core.precision import squares, widened
from metalearn.core.samples.outer_products import (
    norms_of_products,
    products,
    split_together,
    takes_gram,
)
from metalearn.core.samples.sample_gradients import FormedGradients, SampleGradients

__all__ = ["ConvolutionGradients", "Geometry"]

_MANY_CHANNELS = 8
_MANY_POSITIONS = 25  # from here on torch's grouped convolution is quicker than copying columns


class Geometry(NamedTuple):
    """How a kernel slides over the axes of space, one number for each."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def read(self, visits: tuple[int, ...]) -> tuple[int, ...]:
        """How far into each axis, its front padding left out, that many positions look."""
        return tuple(
            (count - 1) * stride + apart * (size - 1) + 1 - pad
            for count, size, stride, pad, apart in zip(visits, *self)
        )

    @property
    def window(self) -> Window:
        """The same for pictures."""
        pads = ((self.padding[0],) * 2, (self.padding[1],) * 2)
        return Window(self.size, self.stride, pads, self.dilation)  # type: ignore[arg-type]


class ConvolutionGradients(SampleGradients):
    """Gradients ``[N, O, C/G, *size]`` of a kernel, from inputs and the outputs' gradients.

    Args:
        x: ``[N, n, C, ...]``.
        dz: ``[N, n, O, ...]``.
        geometry: of the kernel.
        groups: G.
        inputs_first: whether ``dz`` are inputs and ``x`` gradients, as of a transposed convolution.
    """

    def __init__(
        self,
        x: Tensor,
        dz: Tensor,
        geometry: Geometry,
        groups: int = 1,
        *,
        inputs_first: bool = False,
    ) -> None:
        self._shape = (dz.shape[2], x.shape[2] // groups, *geometry.size)
        if len(geometry.size) == 1:  # a row is a picture of one line
            x, dz = x.unsqueeze(-2), dz.unsqueeze(-2)
            before = Geometry((1,), (1,), (0,), (1,))
            geometry = Geometry(*(a + b for a, b in zip(before, geometry)))
        self.x, self.dz, self.geometry, self.groups = x, dz, geometry, groups
        self.inputs_first = inputs_first

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return self._shape

    @property
    def count(self) -> int:  # noqa: D102
        return len(self.dz)

    def formed(self) -> Tensor:  # noqa: D102
        x, dz = self.x, self.dz
        special = len(self.geometry.size) > 2 or self.groups > 1
        if _is_wrapped(x) or (special and _is_wrapped(dz)):
            grads = torch.func.vmap(self._of_pictures)(x, dz)
        elif special or (self._is_large and not _is_wrapped(dz)):
            grads = self._by_groups()
        else:
            pieces = split_together(self._held, x, dz)
            parts = [self._of(a, b, 1) for a, b in pieces]
            grads = torch.cat([products(p._rows(), p._columns()) for p in parts])
            if self._channels_last:
                grads = grads.view(len(x), dz.shape[2], *self.geometry.size, x.shape[2])
                grads = grads.permute(0, 1, 4, 2, 3)
        return grads.reshape(len(x), *self.shape)

    def samples(self, first: int, stop: int) -> SampleGradients:  # noqa: D102
        return self._of(self.x[first:stop], self.dz[first:stop], self.groups)

    def squared_norms(self) -> Tensor:  # noqa: D102
        x, dz = widened(self.x), widened(self.dz)
        if _is_wrapped(x):
            return squares(self._of(x, dz, self.groups).formed())
        if self.groups > 1:
            return self._by_group(x, dz).squared_norms().view(len(x), -1).sum(1)
        if self._is_large:
            return super().squared_norms()
        parts = [self._of(a, b, 1) for a, b in split_together(self._held, x, dz)]
        return torch.cat([norms_of_products(p._rows(), p._columns()) for p in parts])

    def in_short(self, room: int) -> tuple[SampleGradients, int]:  # noqa: D102
        more = math.prod(self.shape) * self.count - self.x.numel() - self.dz.numel()
        if self.groups > 1 or self._takes_gram or more > room:
            return self, 0
        formed = self._of(widened(self.x), widened(self.dz), 1).formed()
        return FormedGradients(formed), more

    def weighted_sum(self, weights: Tensor) -> Tensor:  # noqa: D102
        x, dz = widened(self.x), widened(self.dz)
        shares = weights.to(dz.dtype).view(-1, *(1,) * (dz.dim() - 1))
        x, dz = (x, dz * shares) if dz.numel() <= x.numel() else (x * shares, dz)
        return self._of_pictures(x.flatten(0, 1), dz.flatten(0, 1)).view(self.shape)

    def input_rows(self) -> Tensor:  # noqa: D102
        return self._by_parts(type(self)._rows if self.inputs_first else type(self)._windows)

    def output_rows(self) -> Tensor:  # noqa: D102
        return self._by_parts(type(self)._windows if self.inputs_first else type(self)._rows)

    def _by_parts(self, rows: Callable[[ConvolutionGradients], Tensor]) -> Tensor:
        """Of each group, ``[N, G, S, ...]``; without groups, ``[N, S, ...]``."""
        if self.groups == 1:
            return rows(self)
        every = rows(self._by_group(self.x, self.dz))
        return every.view(self.count, self.groups, *every.shape[1:])

    def _windows(self) -> Tensor:
        """``[N, S, I]``, in the order of the kernel; without groups."""
        columns = _windows(self.x.flatten(0, 1), self.geometry, tuple(self.dz.shape[3:]))
        places = math.prod(self.dz.shape[3:])
        columns = columns.reshape(*self.x.shape[:2], -1, places)
        if self.x.shape[1] == 1:
            return columns[:, 0].mT
        return columns.transpose(1, 2).flatten(2, 3).mT

    def _rows(self) -> Tensor:
        """``[N, S, O]``; without groups."""
        flat = self.dz.flatten(3)
        return flat[:, 0].mT if flat.shape[1] == 1 else flat.transpose(2, 3).flatten(1, 2)

    def _columns(self) -> Tensor:
        """The same, in the order (kh, kw, C) where there are many channels, which is quicker."""
        if not self._channels_last:
            return self._windows()
        pictures = self.x.flatten(0, 1).permute(0, 2, 3, 1)
        columns = to_columns(pictures, self.geometry.window)
        return columns.reshape(len(self.x), -1, columns.shape[-1])

    @property
    def _held(self) -> int:
        """Numbers that the columns of one sample take."""
        return math.prod(self.geometry.size) * self.x.shape[2] * self._places

    @property
    def _places(self) -> int:
        """Positions of one sample."""
        return self.dz.shape[1] * math.prod(self.dz.shape[3:])

    @property
    def _takes_gram(self) -> bool:
        """Of a picture with many positions the products take less than columns alone."""
        inputs = math.prod(self.geometry.size) * self.x.shape[2]
        return not self._is_large and takes_gram(self._places, self.dz.shape[2], inputs)

    @property
    def _channels_last(self) -> bool:
        flat = len(self.geometry.size) == 2 and self.groups == 1
        return flat and self.x.shape[2] >= _MANY_CHANNELS

    @property
    def _is_large(self) -> bool:
        places = math.prod(self.dz.shape[3:])
        return self.x.shape[2] >= _MANY_CHANNELS and places >= _MANY_POSITIONS

    def _of(self, x: Tensor, dz: Tensor, groups: int) -> ConvolutionGradients:
        """The same kernel's of other samples or groups."""
        found = ConvolutionGradients.__new__(ConvolutionGradients)
        found.x, found.dz, found.geometry, found.groups = x, dz, self.geometry, groups
        found.inputs_first = self.inputs_first
        found._shape = (dz.shape[2], x.shape[2] // groups, *self._shape[2:])
        return found

    def _of_pictures(self, x: Tensor, dz: Tensor) -> Tensor:
        """The kernel's gradient ``[O, C/G, ...]`` from pictures ``[n, C, ...]``, by torch."""
        weight = x.new_empty(1).expand(dz.shape[1], x.shape[1] // self.groups, *self.geometry.size)
        return self._backward(x, dz, weight, self.groups)

    def _by_groups(self) -> Tensor:
        """By torch's convolution with a group for each sample."""
        n, _, channels = self.x.shape[:3]
        outputs, inputs = self.dz.shape[2], channels // self.groups
        weight = self.x.new_empty(1).expand(n * outputs, inputs, *self.geometry.size)
        x, dz = (t.transpose(0, 1).flatten(1, 2) for t in (self.x, self.dz))
        return self._backward(x, dz, weight, n * self.groups).view(n, outputs, *weight.shape[1:])

    def _backward(self, x: Tensor, dz: Tensor, weight: Tensor, groups: int) -> Tensor:
        _, stride, padding, dilation = self.geometry
        settings = (None, stride, padding, dilation, False, [0] * len(stride), groups)
        grads: Tensor = torch.ops.aten.convolution_backward(
            dz, x, weight, *settings, [False, True, False]
        )[1]
        return grads

    def _by_group(self, x: Tensor, dz: Tensor) -> ConvolutionGradients:
        """Each group as a sample of its own, ``[N·G, n, C/G, ...]``."""
        x, dz = (
            t.reshape(*t.shape[:2], self.groups, -1, *t.shape[3:]).movedim(2, 1).flatten(0, 1)
            for t in (x, dz)
        )
        return self._of(x, dz, 1)


def _is_wrapped(tensor: Tensor) -> bool:
    """Whether a further vmap or derivative is under way, for which torch has the rules."""
    return is_functorch_wrapped_tensor(tensor) or tensor.requires_grad


def _windows(pictures: Tensor, geometry: Geometry, visits: tuple[int, ...]) -> Tensor:
    """``[n, C, ...]`` to ``[n, C, *size, *visits]``: what the kernel sees at each position."""
    axes = len(geometry.size)
    padding = [pad for pad in reversed(geometry.padding) for _ in range(2)]
    windows = F.pad(pictures, padding)
    for axis, (size, stride, _, apart) in enumerate(zip(*geometry), start=2):
        windows = windows.unfold(axis, apart * (size - 1) + 1, stride)[..., ::apart]
        windows = windows.narrow(axis, 0, visits[axis - 2])
    order = (0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
    return windows.permute(order).contiguous()
