"""Convolution and batch norm of data as one matrix product.

The moments of z = columns·w follow from the columns': its mean is mean(columns)·w and its variance
wᵀ·G·w with G their covariance, so that the norm folds into the weights and no pass over z is
needed. Second derivatives are exact, third ones are refused.
Axes: T tasks, N positions, K columns, O output channels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from metalearn.core.float64 import widest
from metalearn.core.ops.blocks import Blocks
from metalearn.core.ops.columns import Columns, to_columns
from metalearn.core.ops.data_cache import cached
from metalearn.core.ops.over_tasks import typed_as_forward
from metalearn.core.ops.windows import Window

__all__ = ["Rows", "fold", "fold_in_blocks", "is_shared", "task_columns"]

_HELD = 2**25  # bytes of rows that are held: of what is larger the system takes back the memory


class Rows(NamedTuple):
    """Columns without their mean, in blocks: held, or made anew of pictures where they are many."""

    held: Tensor | None
    """``[T, N, K]``, with a bias ``[T, N, K + 1]``, the last column ones."""
    pictures: Tensor | None
    """``[T, B, H, W, C]``."""
    mean: Tensor | None
    """``[T, 1, K]`` of their columns."""
    window: Window


def fold(
    x: Tensor, matrix: Tensor, gamma: Tensor | None, beta: Tensor | None, window: Window, eps: float
) -> tuple[Tensor, Tensor]:
    """Rows ``[T, N, K]`` and matrix ``[T, K, O]`` whose product is the normed convolution.

    Of ``x [T, B, C, H, W]``, which needs no gradient, ``matrix [T, K, O]``, ``gamma`` and ``beta``
    ``[T, 1, O]``. With ``beta`` there is one more column, of ones.
    """
    rows, covariance = cached(_with_ones if beta is not None else _centred, x, window)
    folded: Tensor = _Fold.apply(matrix, gamma, beta, covariance, eps)
    return rows, folded


def fold_in_blocks(
    x: Tensor, matrix: Tensor, gamma: Tensor | None, beta: Tensor | None, window: Window, eps: float
) -> tuple[Rows, Tensor]:
    """The same as `fold` for what takes its rows in blocks."""
    count = len(x[:1] if is_shared(x) else x)
    down, across = window.positions(*x.shape[3:])
    if count * x.shape[1] * down * across * matrix.shape[1] * x.element_size() <= _HELD:
        held, folded = fold(x, matrix, gamma, beta, window, eps)
        return Rows(held, None, None, window), folded
    pictures, mean, covariance = cached(_moments, x, window)
    folded = _Fold.apply(matrix, gamma, beta, covariance, eps)
    return Rows(None, pictures, mean, window), folded


def task_columns(x: Tensor, window: Window) -> Tensor:
    """``[T, B, C, H, W]`` to ``[T, N, K]``, made once where all tasks share x."""
    own = x[:1] if is_shared(x) else x
    columns = to_columns(own.flatten(0, 1).movedim(1, -1), window)
    return columns.reshape(len(own), -1, columns.shape[-1]).expand(len(x), -1, -1)


def is_shared(x: Tensor) -> bool:
    """Whether all tasks look at the same memory."""
    return len(x) > 1 and x.stride(0) == 0


def _centred(x: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Columns without their mean, and their covariance ``[T, K, K]``."""
    columns = task_columns(x, window)
    own = columns[:1] if is_shared(columns) else columns
    rows = own - own.mean(1, keepdim=True)
    return rows.expand_as(columns), _second_moment(rows).expand(len(x), -1, -1)


def _moments(x: Tensor, window: Window) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures ``[T, B, H, W, C]``, and the mean and covariance of columns that are never held."""
    own = (x[:1] if is_shared(x) else x).movedim(2, -1).contiguous()
    count, samples, height, width, channels = own.shape
    each = math.prod(window.positions(height, width))
    length = math.prod(window.size) * channels
    size = samples * each * length * own.element_size()
    blocks = Blocks.of(count, samples, each, size, cached=own.device.type == "cpu")
    columns = Columns(own, window, (*blocks.lead, height, width, channels))
    shift = widest(own.new_zeros(count, 1, length))
    total, product = shift.clone(), shift.new_zeros(count, length, length)
    memory = shift.new_empty(math.prod(blocks.lead) * each * length)
    for block in blocks:
        narrow = blocks.columns(columns, own, block)
        wide = memory[: narrow.numel()].view(narrow.shape).copy_(narrow)
        if not block.samples.start:
            shift[block.tasks] = wide.mean(1, keepdim=True)
        wide.sub_(shift[block.tasks])
        total[block.tasks] += wide.sum(1, keepdim=True)
        product[block.tasks].baddbmm_(wide.mT, wide)
    rest = total / (samples * each)
    covariance = (product / (samples * each)).baddbmm_(rest.mT, rest, alpha=-1)
    mean = (shift + rest).to(own.dtype)
    full = (own, mean, covariance.to(own.dtype))
    pictures, mean, covariance = (part.expand(len(x), *part.shape[1:]) for part in full)
    return pictures, mean, covariance


def _second_moment(rows: Tensor) -> Tensor:
    """``[T, K, K]``, summed in float64 where the device has it.

    Most rows of a picture are its background and equal, and a float32 sum of equal numbers is
    rounded the same way thousands of times: to 1e-4, not to 1e-7.
    """
    wide = widest(rows)
    return (torch.bmm(wide.mT, wide) / rows.shape[1]).to(rows.dtype)


def _with_ones(x: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """The same with a column of ones behind, which is in the rows alone."""
    rows, covariance = _centred(x, window)
    own = rows[:1] if is_shared(rows) else rows
    own = torch.cat([own, own.new_ones(*own.shape[:2], 1)], -1)
    return own.expand(len(x), -1, -1), covariance


class _Fold(Function):
    """``(w, γ, β) → m``: w·a with a = γ·r and r = (wᵀ·G·w + eps)^(−1/2), and β as a last row."""

    @staticmethod
    def forward(
        ctx: Any,
        w: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        covariance: Tensor,
        eps: float,
    ) -> Tensor:
        image = torch.bmm(covariance, w)
        r = (w * image).sum(1, keepdim=True).add_(eps).rsqrt_()
        folded = _beside(w * _slope(r, gamma), beta)
        ctx.save_for_backward(w, gamma, covariance, image, r)
        return folded

    @staticmethod
    @typed_as_forward
    def backward(ctx: Any, dm: Tensor) -> tuple[Tensor | None, ...]:
        has_gamma, has_beta = ctx.needs_input_grad[1:3]
        dw, dgamma, dbeta = _FoldBackward.apply(dm, *ctx.saved_tensors)
        return dw, dgamma if has_gamma else None, dbeta if has_beta else None, None, None


class _FoldBackward(Function):
    """``(dm, w, γ) → (dw, dγ, dβ)``.

    With p = Σ dm·w over columns: dw = a·dm − a·r²·p·G·w, dγ = r·p, dβ the last row of dm.
    """

    @staticmethod
    def forward(
        ctx: Any,
        dm: Tensor,
        w: Tensor,
        gamma: Tensor | None,
        covariance: Tensor,
        image: Tensor,
        r: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(dm, w, gamma, covariance, image, r)
        dm, dbeta = dm[:, : w.shape[1]], dm[:, w.shape[1] :]
        a, p = _slope(r, gamma), (dm * w).sum(1, keepdim=True)
        dw = (dm * a).addcmul_(image, (a * r * r * p).neg_())
        return dw, r * p, dbeta.clone()

    @staticmethod
    @typed_as_forward
    def backward(ctx: Any, u: Tensor, ugamma: Tensor, ubeta: Tensor) -> tuple[Tensor | None, ...]:
        """The tangent along (u, uγ, uβ): the Hessian of the fold is symmetric."""
        if torch.is_grad_enabled():
            raise NotImplementedError("third derivatives of a folded convolution and batch norm")
        dm, w, gamma, covariance, image, r = ctx.saved_tensors
        dm = dm[:, : w.shape[1]]
        a, r2 = _slope(r, gamma), r * r
        p, p_ = (dm * w).sum(1, keepdim=True), (dm * u).sum(1, keepdim=True)
        r_ = (u * image).sum(1, keepdim=True).mul_(r2 * r).neg_()
        a_ = torch.addcmul(_slope(r_, gamma), r, ugamma)
        gdm = _beside((u * a).addcmul_(w, a_), ubeta)
        c_ = (a_ * r2 + 2 * a * r * r_) * p + a * r2 * p_
        gw = (dm * a_).addcmul_(image, c_, value=-1)
        gw.addcmul_(torch.bmm(covariance, u), a * r2 * p, value=-1)
        ggamma = None if gamma is None else r_ * p + r * p_
        return gdm, gw, ggamma, None, None, None


def _slope(r: Tensor, gamma: Tensor | None) -> Tensor:
    return r if gamma is None else r * gamma


def _beside(matrix: Tensor, row: Tensor | None) -> Tensor:
    return matrix if row is None else torch.cat([matrix, row], 1)
