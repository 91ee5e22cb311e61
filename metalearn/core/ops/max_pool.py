"""Max-pooling of channels-last pictures, by places that are kept in a byte for each window.

Torch's own keeps eight, looks for them by one index after another, and clears memory first to
which it then adds. With the places fixed pooling is linear, so that its derivatives of all orders
are two functions: what is at the places, and the transpose.
Axes: n pictures, [H, W, C] of a picture, [H', W'] windows that lie side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from metalearn.core.native import Kernels, has_kernels, kernels_for

__all__ = ["can_max_pool", "has_codes", "max_pool", "put_back", "take"]

_MOST = 255  # places of a window: more have no code

Size = tuple[int, int]


def has_codes(size: Size) -> bool:
    """Whether the places of a window of that size fit into a byte."""
    return math.prod(size) <= _MOST


def can_max_pool(x: Tensor, size: Size) -> bool:
    """Whether `max_pool` is there for such pictures and windows."""
    return has_codes(size) and has_kernels(x)


def max_pool(x: Tensor, size: Size, *, rectify: bool = False) -> Tensor:
    """The largest of each window of ``[n, H, W, C]``: ``[n, H', W', C]``.

    Differentiable any number of times, in reverse mode.

    Args:
        x: contiguous.
        size: of a window, which may not be larger than the picture.
        rectify: whether max(0, x) is pooled.
    """
    y: Tensor = _MaxPool.apply(x, size, rectify)[0]
    return y


def take(kernels: Kernels | None, z: Tensor, size: Size, codes: Tensor, y: Tensor) -> None:
    """`Kernels.pool_take`, also where a backward pass may have no kernels."""
    if kernels is not None:
        kernels.pool_take(z, size, codes, y)
        return
    y.zero_()
    for code, place in enumerate(_places(z, size)):
        y.copy_(torch.where(codes == code, place, y))


def put_back(kernels: Kernels | None, dy: Tensor, size: Size, codes: Tensor, z: Tensor) -> None:
    """`Kernels.pool_back`, likewise."""
    if kernels is not None:
        kernels.pool_back(dy, size, codes, z)
        return
    z.zero_()
    for code, place in enumerate(_places(z, size)):
        place.copy_(torch.where(codes == code, dy, 0))


def _places(z: Tensor, size: Size) -> Iterator[Tensor]:
    """Of each window its first place, then its second …: views ``[n, H', W', C]`` of z."""
    height, width = (length // side * side for length, side in zip(z.shape[1:3], size))
    for row in range(size[0]):
        for column in range(size[1]):
            yield z[:, row : height : size[0], column : width : size[1]]


class _MaxPool(Function):
    """``x → (y, codes)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Size, rectify: bool) -> tuple[Tensor, Tensor]:
        kernels = kernels_for(x)
        if kernels is None:
            raise RuntimeError("max-pooling by places needs the compiled kernels")
        count, height, width, channels = x.shape
        shape = count, height // size[0], width // size[1], channels
        y, codes = x.new_empty(shape), x.new_empty(shape, dtype=torch.uint8)
        kernels.pool(x, size, y, codes, rectify=rectify)
        ctx.size, ctx.shape = size, x.shape
        ctx.mark_non_differentiable(codes)
        ctx.save_for_backward(codes)
        return y, codes

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        return _PutBack.apply(dy, *ctx.saved_tensors, ctx.size, ctx.shape), None, None


class _PutBack(Function):
    """``dy [n, H', W', C] → dx [n, H, W, C]``: what is at the places, and 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, codes: Tensor, size: Size, shape: torch.Size) -> Tensor:
        ctx.size, ctx.shape = size, shape
        ctx.save_for_backward(codes)
        dy, dx = _plain(dy), dy.new_empty(shape)
        put_back(kernels_for(dy), dy, size, codes, dx)
        return dx

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        return _Take.apply(u, *ctx.saved_tensors, ctx.size), None, None, None


class _Take(Function):
    """``u [n, H, W, C] → [n, H', W', C]``: the transpose."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, codes: Tensor, size: Size) -> Tensor:
        ctx.size, ctx.shape = size, u.shape
        ctx.save_for_backward(codes)
        u, y = _plain(u), u.new_empty(codes.shape)
        take(kernels_for(u), u, size, codes, y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx = cast(Tensor, _PutBack.apply(dy, *ctx.saved_tensors, ctx.size, ctx.shape))
        return dx, None, None


def _plain(tensor: Tensor) -> Tensor:
    """Contiguous, its values those in its memory."""
    return tensor.resolve_neg().contiguous()
