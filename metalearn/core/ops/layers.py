"""Layers whose every operand has a task axis, in torch's layout of pictures.

They give what ``vmap`` of torch's own functions gives. Pictures stay channels-last in memory from
one layer to the next, so that the permutations here cost nothing between them.
Axes: T tasks, B samples, C channels, [H, W] of a picture, O output channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import leaky_relu

from metalearn.core.ops.convolution import Product, convolution
from metalearn.core.ops.data_cache import cached
from metalearn.core.ops.folding import fold, fold_in_blocks, is_shared, task_columns
from metalearn.core.ops.max_pool import can_max_pool, max_pool
from metalearn.core.ops.normalization import normalize
from metalearn.core.ops.over_tasks import typed_as_forward
from metalearn.core.ops.pooling import pooled_product
from metalearn.core.ops.windows import Window, tiles_of

__all__ = [
    "batch_norm",
    "can_fold",
    "conv2d",
    "conv_batch_norm",
    "folded_conv_batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "leak_of",
    "linear",
    "max_pool2d",
    "pooled_conv_batch_norm",
    "pooled_size",
]


_NARROW = 8
"""Channels below which the kernels of pooling take one at a time."""


def conv2d(
    x: Tensor | Product,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    *,
    rectify: bool = False,
) -> Tensor:
    """Weight ``[T, O, C, kh, kw]`` and bias ``[T, O]`` over ``[T, B, C, H, W]``; same axes out.

    Of max(0, x) with ``rectify``.
    """
    if not isinstance(x, Product) and not x.requires_grad and not rectify and is_shared(x):
        return _conv2d_of_shared(x, weight, bias, window)
    last = x if isinstance(x, Product) else _channels_last(x)
    z = convolution(last, _matrix(weight), _row(bias), window, rectify=rectify)
    return z.movedim(-1, 2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x [T, ..., I]``, ``weight [T, O, I]``, ``bias [T, O]``: ``[T, ..., O]``."""
    rows = x.flatten(1, -2) if x.dim() > 2 else x[:, None]
    z: Tensor = _Linear.apply(rows, weight, bias)
    return z.view(*x.shape[:-1], z.shape[-1])


def batch_norm(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, *, eps: float, leak: float = 1.0
) -> Tensor:
    """``x [T, B, C, ...]`` by the moments of its batch; ``gamma``, ``beta`` ``[T, C]``.

    ``leak`` times what is below 0.
    """
    last = _channels_last(x)
    rows = last.flatten(1, -2)
    y = normalize(rows, _row(gamma), _row(beta), dim=1, eps=eps, leak=leak)
    return y.view(last.shape).movedim(-1, 2)


def instance_norm(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, *, eps: float, leak: float = 1.0
) -> Tensor:
    """``x [T, B, C, ...]`` by the moments of each sample's channels; ``gamma`` ``[T, C]``.

    ``leak`` times what is below 0.
    """
    last = _channels_last(x)
    rows = last.flatten(2, -2)
    gamma, beta = (None if p is None else p[:, None, None] for p in (gamma, beta))
    y = normalize(rows, gamma, beta, dim=2, eps=eps, leak=leak)
    return y.view(last.shape).movedim(-1, 2)


def group_norm(
    x: Tensor, groups: int, gamma: Tensor | None, beta: Tensor | None, *, eps: float
) -> Tensor:
    """``x [T, B, C, ...]`` by the moments of groups of each sample's channels."""
    rows = x.reshape(*x.shape[:2], groups, -1)
    y = normalize(rows, None, None, dim=-1, eps=eps).view(x.shape)
    ones = (1,) * (x.dim() - 3)
    return _affine(y, *(p if p is None else p.view(len(p), 1, -1, *ones) for p in (gamma, beta)))


def layer_norm(
    x: Tensor, axes: int, gamma: Tensor | None, beta: Tensor | None, *, eps: float
) -> Tensor:
    """``x [T, ..., *shape]`` by the moments over its last ``axes``; ``gamma`` ``[T, *shape]``."""
    y = normalize(x.flatten(-axes), None, None, dim=-1, eps=eps).view(x.shape)
    ones = (1,) * (x.dim() - 1 - axes)
    shapes = (p if p is None else p.view(len(p), *ones, *p.shape[1:]) for p in (gamma, beta))
    return _affine(y, *shapes)


def conv_batch_norm(
    x: Tensor | Product,
    weight: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    window: Window,
    *,
    eps: float,
    leak: float,
    rectify: bool = False,
) -> Tensor:
    """Convolution, batch norm and leaky ReLU in one; shapes as in `conv2d` and `batch_norm`.

    A bias of the convolution would cancel.
    """
    z = conv2d(x, weight, None, window, rectify=rectify)
    return batch_norm(z, gamma, beta, eps=eps, leak=leak)


def leak_of(layer: nn.Module) -> float | None:
    """By what an activation multiplies what is below 0, where that is all that it does."""
    if type(layer) is nn.LeakyReLU and layer.negative_slope > 0:  # of 0 torch has NaNs of its own
        return float(layer.negative_slope)
    return 0.0 if type(layer) is nn.ReLU else None


def max_pool2d(x: Tensor, layer: nn.MaxPool2d, *, leak: float = 1.0) -> Tensor:
    """``x [T, B, C, H, W]``: the largest of each window, and ``leak`` times what is below 0 of it.

    Which is what a leaky ReLU in front would lead to, of fewer elements. Torch's own ReLU is taken
    in front: it would keep the result, which others may write to.
    """
    size = pooled_size(x, layer, x.shape[1:])
    if size is not None:
        y = max_pool(_channels_last(x).flatten(0, 1), size, rectify=leak == 0).movedim(-1, 1)
    else:
        y = layer((torch.relu(x) if leak == 0 else x).flatten(0, 1))
    y = y if leak in (0, 1) else leaky_relu(y, leak)
    return y.view(*x.shape[:2], *y.shape[1:])


def pooled_size(like: Tensor, layer: nn.MaxPool2d, shape: Sequence[int]) -> tuple[int, int] | None:
    """The windows of a pooling of pictures ``[B, C, H, W]``; None if it is left to torch."""
    size = tiles_of(layer, *shape[2:]) if len(shape) == 4 and shape[1] >= _NARROW else None
    return size if size is not None and can_max_pool(like, size) else None


def can_fold(x: Tensor, weight: Tensor) -> bool:
    """Whether `folded_conv_batch_norm` is worth it: x is data and has few columns."""
    return not x.requires_grad and weight[0, 0].numel() <= weight.shape[1]


def folded_conv_batch_norm(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    window: Window,
    *,
    eps: float,
) -> Product:
    """Convolution and batch norm of data as one matrix product; shapes as in `conv_batch_norm`."""
    rows, matrix = fold(x, _matrix(weight).mT, _row(gamma), _row(beta), window, eps)
    shape = *x.shape[:2], *window.positions(*x.shape[3:]), weight.shape[1]
    return Product(rows, matrix, shape)


def pooled_conv_batch_norm(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    window: Window,
    size: tuple[int, int],
    *,
    eps: float,
) -> Tensor:
    """The same with a ReLU and max-pooling behind, windows of that size side by side."""
    rows, matrix = fold_in_blocks(x, _matrix(weight).mT, _row(gamma), _row(beta), window, eps)
    shape = *x.shape[:2], *window.positions(*x.shape[3:]), weight.shape[1]
    return pooled_product(rows, matrix, shape, size).movedim(-1, 2)


class _Linear(Function):
    """``x·Wᵀ + b``, its gradient of W laid out as W is: autograd's is that of Wᵀ.

    A step would read across it, and the product of few outputs is slow the other way round.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if bias is None:
            return torch.bmm(x, weight.mT)
        return torch.baddbmm(bias[:, None], x, weight.mT)

    @staticmethod
    @typed_as_forward
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            torch.bmm(slope, weight) if wanted[0] else None,
            torch.bmm(slope.mT, x) if wanted[1] else None,
            slope.sum(1) if wanted[2] else None,
        )


def _conv2d_of_shared(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """`conv2d` of the same pictures for all tasks: their columns are made once."""
    columns = cached(task_columns, x, window)
    matrix = _matrix(weight).mT
    if bias is None:
        z = torch.bmm(columns, matrix)
    else:
        z = torch.baddbmm(bias[:, None], columns, matrix)
    return z.view(*x.shape[:2], *window.positions(*x.shape[3:]), z.shape[-1]).movedim(-1, 2)


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(2, -1).contiguous()


def _matrix(weight: Tensor) -> Tensor:
    """``[T, O, C, kh, kw]`` to ``[T, O, kh·kw·C]``; a view where memory has that order."""
    return weight.permute(0, 1, 3, 4, 2).flatten(2)


def _row(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter[:, None]


def _affine(y: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    if gamma is not None:
        y = y * gamma
    return y if beta is None else y + beta
