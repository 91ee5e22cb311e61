"""Convolution with weights of their own for every task, by columns and batched matrix products.

Channels last: z = columns(x) · wᵀ + b. Columns are kh·kw times as large as x, so they are made anew
wherever they are needed, a block of tasks (or of one's samples) at a time, and never kept: on a CPU
a block stays in the cache, which is faster than to fetch columns from memory, let alone to ask the
system for it.
A ReLU in front of a convolution joins it, and its mask is applied to blocks too. Second derivatives
are exact; third ones are refused.
Axes: T tasks, B samples, [H, W, C] of a picture, N = B·H'·W' positions, K = kh·kw·C columns,
O output channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from metalearn.core.ops.blocks import Block, Blocks
from metalearn.core.ops.columns import Columns
from metalearn.core.ops.direct import Direct, direct_for
from metalearn.core.ops.over_tasks import typed_as_forward
from metalearn.core.ops.unread import Unread, leaf_unread, zeros_in_place
from metalearn.core.ops.windows import Window

__all__ = ["Product", "convolution"]


class Product(NamedTuple):
    """Pictures ``[T, B, H, W, C]`` that are rows · matrix, never held as a whole."""

    rows: Tensor
    """``[T, B·H·W, K]``, data."""
    matrix: Tensor
    """``[T, K, C]``."""
    shape: tuple[int, ...]
    """T, B, H, W, C."""

    def whole(self) -> Tensor:
        """The pictures."""
        return torch.bmm(self.rows, self.matrix).view(self.shape)


def convolution(
    x: Tensor | Product,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    *,
    rectify: bool = False,
) -> Tensor:
    """``x [T, B, H, W, C]``, ``weight [T, O, K]``, ``bias [T, 1, O]``: ``[T, B, H', W', O]``.

    Of max(0, x) with ``rectify``. Differentiable twice, in reverse mode.
    """
    shape = tuple(x.shape)
    x, rows = (x.matrix, x.rows) if isinstance(x, Product) else (x, None)
    settings = _Settings(window, rectify, shape, leaf_unread(weight))
    z: Tensor = _Convolution.apply(x, weight, bias, rows, settings)
    return z.view(*shape[:2], *window.positions(*shape[2:4]), z.shape[-1])


class _Settings(NamedTuple):
    window: Window
    rectify: bool
    shape: tuple[int, ...]
    """T, B, H, W, C of the pictures."""
    unread: Unread | None
    """Says when the weight's gradient is not read."""

    def direct(self, rows: Tensor | None, weight: Tensor) -> Direct | None:
        """The way without columns, for pictures that are large and whole."""
        if rows is not None:
            return None
        return direct_for(weight, self.window, self.rectify, self.shape, weight.shape[1])


class _Blocks:
    """Columns of pictures and their transpose, some tasks or some samples of a task at a time.

    With ``rows``, what is called x here is the matrix of a `Product`, and tasks stay whole. All
    blocks are in the same memory: columns hold until the next call. Of ``others`` columns are made,
    or products with them.
    """

    def __init__(
        self, rows: Tensor | None, weight: Tensor, settings: _Settings, *others: Tensor | None
    ) -> None:
        window, self.rectify, self.shape, _ = settings
        self.rows = rows
        count, samples, height, width, channels = self.shape
        down, across = window.positions(height, width)
        self.positions = samples * down * across
        size = self.positions * window.size[0] * window.size[1] * channels * weight.element_size()
        cached, whole = weight.device.type == "cpu", rows is not None
        self._blocks = Blocks.of(
            count, samples, down * across, size, cached=cached, divisible=not whole
        )
        self._apart = self._blocks.apart
        lead = self._blocks.lead
        self._columns = Columns(weight, window, (*lead, *self.shape[2:]), rows, *others)

    def __iter__(self) -> Iterator[Block]:
        return iter(self._blocks)

    def pictures(self, x: Tensor, block: Block) -> Tensor:
        """``[t, b, H, W, C]``."""
        if self.rows is None:
            return x[block.tasks, block.samples]
        return torch.bmm(self.rows[block.tasks], x[block.tasks]).view(-1, *self.shape[1:])

    def columns(self, pictures: Tensor, gate: Tensor) -> Tensor:
        """``[t, n, K]`` of pictures; with a ReLU, where ``gate`` is above 0."""
        seen = self._columns.of(self._seen(pictures), self._seen(gate) if self.rectify else None)
        return seen.flatten(0, 1)[None] if self._apart else seen

    def back(self, dz: Tensor, weight: Tensor, gate: Tensor, out: Tensor, block: Block) -> None:
        """Transpose of `columns` and `pictures` at dz · w, written to a part of ``out``."""
        memory = self._columns.memory(len(self._seen(gate)))
        memory = memory.flatten(0, 1)[None] if self._apart else memory
        torch.bmm(block.of(dz), weight[block.tasks], out=memory)
        pictures = out[block.tasks, block.samples] if self.rows is None else torch.empty_like(gate)
        self._columns.add_up(self._seen(pictures), self._seen(gate) if self.rectify else None)
        if self.rows is not None:
            rows = self.rows[block.tasks].mT
            torch.bmm(rows, pictures.flatten(1, 3), out=out[block.tasks])

    def _seen(self, pictures: Tensor) -> Tensor:
        """As `Columns` has them: the samples of one task are in the place of tasks."""
        return pictures.transpose(0, 1) if self._apart else pictures


def _of_weight(
    dz: Tensor, pictures: Tensor, gate: Tensor, weight: Tensor, settings: _Settings
) -> Tensor:
    """The cotangent of the weight by columns, with a ReLU of pictures where ``gate`` is above 0."""
    blocks = _Blocks(None, weight, settings, pictures, gate, dz)
    dweight = weight.new_empty(weight.shape)
    for block in blocks:
        columns = blocks.columns(blocks.pictures(pictures, block), blocks.pictures(gate, block))
        block.add_product(block.of(dz), columns, dweight)
    return dweight


class _Convolution(Function):
    """``(x, w, b) → z [T, N, O]``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor | None,
        settings: _Settings,
    ) -> Tensor:
        ctx.settings = settings
        ctx.save_for_backward(x, weight, rows)
        direct = settings.direct(rows, weight)
        if direct is not None:
            return direct.forward(x, weight, bias)
        blocks = _Blocks(rows, weight, settings, x)
        z = x.new_empty(len(x), blocks.positions, weight.shape[1])
        for block in blocks:
            pictures, matrix = blocks.pictures(x, block), weight[block.tasks].mT
            columns = blocks.columns(pictures, pictures)
            if bias is None:
                torch.bmm(columns, matrix, out=block.of(z))
            else:
                torch.baddbmm(bias[block.tasks], columns, matrix, out=block.of(z))
        return z

    @staticmethod
    @typed_as_forward
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        want = ctx.needs_input_grad[:3]
        grads = _ConvolutionBackward.apply(dz, *ctx.saved_tensors, ctx.settings, want)
        return *grads, None, None


class _ConvolutionBackward(Function):
    """``(dz, x, w) → (dx, dw, db)``, linear in dz; its backward is the second order."""

    @staticmethod
    def forward(
        ctx: Any,
        dz: Tensor,
        x: Tensor,
        weight: Tensor,
        rows: Tensor | None,
        settings: _Settings,
        want: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.settings, ctx.want = settings, want
        unread = settings.unread is not None and settings.unread.now
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dz, x, weight, rows)
        dbias = dz.sum(1, keepdim=True) if want[2] else None
        wanted = want[0], want[1] and not unread
        direct = settings.direct(rows, weight)
        if direct is not None:
            dx, dweight = direct.backward(dz, x, weight, wanted)
            if wanted[1] and dweight is None:
                dweight = _of_weight(dz, x, x, weight, settings)
            return dx, zeros_in_place(weight) if want[1] and unread else dweight, dbias
        blocks = _Blocks(rows, weight, settings, x, dz)
        dx = x.new_empty(x.shape) if wanted[0] else None
        dweight = x.new_empty(weight.shape) if wanted[1] else None
        for block in blocks:
            pictures = blocks.pictures(x, block)
            if dweight is not None:
                columns = blocks.columns(pictures, pictures)
                block.add_product(block.of(dz), columns, dweight)
            if dx is not None:
                blocks.back(dz, weight, pictures, dx, block)
        return dx, zeros_in_place(weight) if want[1] and unread else dweight, dbias

    @staticmethod
    @typed_as_forward
    def backward(
        ctx: Any, ux: Tensor | None, uw: Tensor | None, ub: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError("third derivatives of a task-batched convolution")
        if ux is None and uw is None and ub is None:
            return (None,) * 6
        dz, x, weight, rows = ctx.saved_tensors
        to_dz, to_x, to_weight = ctx.needs_input_grad[:3]
        direct = ctx.settings.direct(rows, weight)
        if direct is not None:
            wanted = to_dz, to_x and ctx.want[0], to_weight
            gdz, gx, gweight = direct.second((ux, uw, ub), dz, x, weight, wanted)
            if gweight is None and to_weight and ux is not None:
                gweight = _of_weight(dz, ux, x, weight, ctx.settings)
            return gdz, gx, gweight, None, None, None
        blocks = _Blocks(rows, weight, ctx.settings, x, dz, ux, uw)
        gdz = gx = gweight = None
        if to_dz:
            gdz = (
                torch.empty_like(dz)
                if ub is None
                else ub.expand_as(dz).clone(memory_format=torch.contiguous_format)
            )
        if to_x and ctx.want[0] and uw is not None:
            gx = x.new_empty(x.shape)
        if to_weight and ux is not None:
            gweight = x.new_empty(weight.shape)
        for block in blocks:
            pictures, kept = blocks.pictures(x, block), ub is not None  # kept: what gdz holds
            if ux is not None:
                columns = blocks.columns(blocks.pictures(ux, block), pictures)
                if gweight is not None:
                    block.add_product(block.of(dz), columns, gweight)
                if gdz is not None:
                    block.of(gdz).baddbmm_(columns, weight[block.tasks].mT, beta=int(kept))
                    kept = True
            if uw is not None and gdz is not None:
                columns = blocks.columns(pictures, pictures)
                block.of(gdz).baddbmm_(columns, uw[block.tasks].mT, beta=int(kept))
            if uw is not None and gx is not None:
                blocks.back(dz, uw, pictures, gx, block)
        return gdz, gx, gweight, None, None, None
