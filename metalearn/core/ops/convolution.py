"""Convolution with weights of their own for every task, by columns and batched matrix products.

Channels last: z = columns(x) · w + b. Columns are kh·kw times as large as x, so they are made anew
wherever they are needed, a block of tasks at a time, and never kept: on a CPU a block stays in the
cache, which is faster than to fetch columns from memory, let alone to ask the system for it.
A ReLU in front of a convolution joins it, and its mask is applied to blocks too. Second derivatives
are exact; third ones are refused.
Axes: T tasks, B samples, [H, W, C] of a picture, N = B·H'·W' positions, K = kh·kw·C columns,
O output channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metalearn.core.ops.columns import Window, bordered, from_columns, to_columns

__all__ = ["convolution", "task_columns"]

_mask = torch.ops.aten.threshold_backward
_BLOCK = 2**21  # bytes of columns at a time on a CPU


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, *, rectify: bool = False
) -> Tensor:
    """``x [T, B, H, W, C]``, ``weight [T, K, O]``, ``bias [T, 1, O]``: ``[T, B, H', W', O]``.

    Of max(0, x) with ``rectify``. Differentiable twice, in reverse mode.
    """
    z: Tensor = _Convolution.apply(x, weight, bias, window, rectify)
    return z.view(*x.shape[:2], *window.positions(*x.shape[2:4]), z.shape[-1])


def task_columns(x: Tensor, window: Window) -> Tensor:
    """``[T, B, H, W, C]`` to ``[T, N, K]``."""
    columns = to_columns(x.flatten(0, 1), window)
    return columns.reshape(x.shape[0], -1, columns.shape[-1])


class _Blocks:
    """Columns of ``[T, B, H, W, C]`` and their transpose, some tasks at a time.

    All blocks are in the same memory: what `columns` gives holds until the next call.
    """

    def __init__(self, x: Tensor, window: Window, rectify: bool) -> None:
        down, across = window.positions(*x.shape[2:4])
        width = window.size[0] * window.size[1] * x.shape[-1]
        self.window, self.count, self.rectify = window, len(x), rectify
        self.rows = x.shape[1] * down * across
        size = self.rows * width * x.element_size()
        self.tasks = min(self.count, max(1, _BLOCK // size)) if x.device.type == "cpu" else len(x)
        self._columns = x.new_empty(self.tasks * x.shape[1], down, across, width)
        self._padded = bordered(x[: self.tasks].flatten(0, 1), window)

    def __iter__(self) -> Iterator[slice]:
        for start in range(0, self.count, self.tasks):
            yield slice(start, min(start + self.tasks, self.count))

    def columns(self, x: Tensor, gate: Tensor) -> Tensor:
        """Of one block of x where ``gate`` is above 0: ``[t, N, K]``."""
        n = x.shape[0] * x.shape[1]
        pictures = (_mask(x, gate, 0) if self.rectify else x).flatten(0, 1)
        columns = to_columns(pictures, self.window, padded=self._padded[:n], out=self._columns[:n])
        return columns.reshape(x.shape[0], self.rows, -1)

    def back(self, dz: Tensor, weight: Tensor, gate: Tensor, out: Tensor) -> None:
        """Transpose of `columns` at dz · wᵀ, for one block of each, written to ``out``."""
        columns = self._columns[: out.shape[0] * out.shape[1]]
        torch.bmm(dz, weight.mT, out=columns.view(len(dz), self.rows, -1))
        from_columns(columns, self.window, *out.shape[2:4], out=out.flatten(0, 1))
        if self.rectify:
            _mask.grad_input(out, gate, 0, grad_input=out)


class _Convolution(Function):
    """``(x, w, b) → z [T, N, O]``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, rectify: bool
    ) -> Tensor:
        blocks = _Blocks(x, window, rectify)
        z = x.new_empty(len(x), blocks.rows, weight.shape[-1])
        for part in blocks:
            columns = blocks.columns(x[part], x[part])
            if bias is None:
                torch.bmm(columns, weight[part], out=z[part])
            else:
                torch.baddbmm(bias[part], columns, weight[part], out=z[part])
        ctx.settings = window, rectify
        ctx.save_for_backward(x, weight)
        return z

    @staticmethod
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
        settings: tuple[Window, bool],
        want: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.settings, ctx.want = settings, want
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dz, x, weight)
        blocks = _Blocks(x, *settings)
        dx = x.new_empty(x.shape) if want[0] else None
        dweight = x.new_empty(weight.shape) if want[1] else None
        for part in blocks:
            if dweight is not None:
                torch.bmm(blocks.columns(x[part], x[part]).mT, dz[part], out=dweight[part])
            if dx is not None:
                blocks.back(dz[part], weight[part], x[part], dx[part])
        return dx, dweight, dz.sum(1, keepdim=True) if want[2] else None

    @staticmethod
    def backward(
        ctx: Any, ux: Tensor | None, uw: Tensor | None, ub: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError("third derivatives of a task-batched convolution")
        dz, x, weight = ctx.saved_tensors
        to_dz, to_x, to_weight = ctx.needs_input_grad[:3]
        to_x = to_x and ctx.want[0] and uw is not None
        blocks = _Blocks(x, *ctx.settings)
        gdz = None
        if to_dz:
            gdz = torch.zeros_like(dz) if ub is None else ub.expand_as(dz).contiguous()
        gx = x.new_empty(x.shape) if to_x else None
        gweight = x.new_empty(weight.shape) if to_weight and ux is not None else None
        for part in blocks:
            if ux is not None:
                columns = blocks.columns(ux[part], x[part])
                if gweight is not None:
                    torch.bmm(columns.mT, dz[part], out=gweight[part])
                if gdz is not None:
                    gdz[part].baddbmm_(columns, weight[part])
            if uw is not None and gdz is not None:
                gdz[part].baddbmm_(blocks.columns(x[part], x[part]), uw[part])
            if uw is not None and gx is not None:
                blocks.back(dz[part], uw[part], x[part], gx[part])
        return gdz, gx, gweight, None, None
