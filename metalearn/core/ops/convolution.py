"""Convolution with weights of their own for every task, by columns and batched matrix products.

Channels last: z = columns(x) · w + b. Second derivatives are exact; third ones are refused.
Axes: T tasks, B samples, [H, W, C] of a picture, N = B·H'·W' positions, K = kh·kw·C columns,
O output channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metalearn.core.ops.columns import Window, from_columns, to_columns

__all__ = ["convolution", "task_columns"]


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """``x [T, B, H, W, C]``, ``weight [T, K, O]``, ``bias [T, 1, O]``: ``[T, B, H', W', O]``.

    Differentiable twice, in reverse mode.
    """
    z: Tensor = _Convolution.apply(x, weight, bias, window)[0]
    return z.view(*x.shape[:2], *window.positions(*x.shape[2:4]), z.shape[-1])


def task_columns(x: Tensor, window: Window) -> Tensor:
    """``[T, B, H, W, C]`` to ``[T, N, K]``."""
    columns = to_columns(x.flatten(0, 1), window)
    return columns.reshape(x.shape[0], -1, columns.shape[-1])


def _gather(columns: Tensor, window: Window, shape: torch.Size) -> Tensor:
    """Transpose of `task_columns`; ``shape`` is that of x."""
    down, across = window.positions(*shape[2:4])
    pictures = from_columns(columns.view(-1, down, across, columns.shape[-1]), window, *shape[2:4])
    return pictures.view(shape)


class _Convolution(Function):
    """``(x, w, b) → (z [T, N, O], columns [T, N, K])``.

    The columns come out as well so that `_ConvolutionBackward` can send cotangents to them: those
    join the ones of z in one product and one summation of windows.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window
    ) -> tuple[Tensor, Tensor]:
        columns = task_columns(x, window)
        if window.is_pixel:
            columns = columns.clone()  # an output must not be a view of an input
        ctx.window, ctx.shape = window, x.shape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, columns)
        if bias is None:
            return torch.bmm(columns, weight), columns
        return torch.baddbmm(bias, columns, weight), columns

    @staticmethod
    def backward(ctx: Any, dz: Tensor | None, dcolumns: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, columns = ctx.saved_tensors
        want = ctx.needs_input_grad[:3]
        if not want[0]:
            dcolumns = None
        if dz is None:
            dx = None if dcolumns is None else _gather(dcolumns, ctx.window, ctx.shape)
            return dx, None, None, None
        if dcolumns is None:
            given = (dz, columns, weight, ctx.window, ctx.shape, want)
            return *_ConvolutionBackward.apply(*given), None
        _refuse_third()
        dcolumns.baddbmm_(dz, weight.mT)  # ours alone: made by _ConvolutionBackward for this call
        dweight = torch.bmm(columns.mT, dz) if want[1] else None
        dbias = dz.sum(1, keepdim=True) if want[2] else None
        return _gather(dcolumns, ctx.window, ctx.shape), dweight, dbias, None


class _ConvolutionBackward(Function):
    """``(dz, columns, w) → (dx, dw, db)``, linear in dz; its backward is the second order."""

    @staticmethod
    def forward(
        ctx: Any,
        dz: Tensor,
        columns: Tensor,
        weight: Tensor,
        window: Window,
        shape: torch.Size,
        want: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.window, ctx.want = window, want
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dz, columns, weight)
        dx = _gather(torch.bmm(dz, weight.mT), window, shape) if want[0] else None
        dweight = torch.bmm(columns.mT, dz) if want[1] else None
        return dx, dweight, dz.sum(1, keepdim=True) if want[2] else None

    @staticmethod
    def backward(
        ctx: Any, ux: Tensor | None, uw: Tensor | None, ub: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        _refuse_third()
        dz, columns, weight = ctx.saved_tensors
        to_dz, to_columns_, to_weight = ctx.needs_input_grad[:3]
        gdz = gcolumns = gweight = None
        if ux is not None:
            ucolumns = task_columns(ux, ctx.window)
            gdz = torch.bmm(ucolumns, weight) if to_dz else None
            gweight = torch.bmm(ucolumns.mT, dz) if to_weight else None
        if uw is not None:
            gdz = _accumulate(gdz, columns, uw) if to_dz else None
            gcolumns = torch.bmm(dz, uw.mT) if to_columns_ and ctx.want[0] else None
        if ub is not None and to_dz:
            gdz = ub.expand_as(dz).clone() if gdz is None else gdz.add_(ub)
        return gdz, gcolumns, gweight, None, None, None


def _refuse_third() -> None:
    if torch.is_grad_enabled():
        raise NotImplementedError("third derivatives of a task-batched convolution")


def _accumulate(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b) if total is None else total.baddbmm_(a, b)
