"""Max-pooling of what a convolution, batch norm and ReLU make of data, in blocks.

y = pool(max(0, rows·m)), m the folded matrix of `metalearn.core.ops.folding`. A block of rows·m is
made, pooled and forgotten while it is in the cache, so that no picture of full size is ever held:
what is kept is y and, of each window, where its largest lies. With these places fixed y is linear
in m, and its derivatives are the same passes again.
Axes: T tasks, B samples, [H, W] of a picture, N = B·H·W positions, K columns, O output channels,
[H', W'] windows.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from metalearn.core.native import has_kernels, kernels_for
from metalearn.core.ops.blocks import Block, Blocks
from metalearn.core.ops.columns import Columns
from metalearn.core.ops.folding import Rows
from metalearn.core.ops.max_pool import has_codes, put_back, take
from metalearn.core.ops.over_tasks import typed_as_forward

__all__ = ["can_pool", "pooled_product"]


def can_pool(
    x: Tensor, weight: Tensor, gamma: Tensor | None, beta: Tensor | None, size: tuple[int, int]
) -> bool:
    """Whether `pooled_product` is there for such pictures, parameters and windows."""
    return has_codes(size) and has_kernels(x, weight, gamma, beta)


def pooled_product(
    rows: Rows, matrix: Tensor, shape: tuple[int, ...], size: tuple[int, int]
) -> Tensor:
    """``[T, B, H', W', O]``: the largest of max(0, rows · matrix) in windows that lie side by side.

    Differentiable twice, in reverse mode.

    Args:
        rows: of T tasks.
        matrix: ``[T, K, O]``, with a bias as one more row.
        shape: T, B, H, W, O of the product.
        size: of a window, which may not be larger than the picture.
    """
    y: Tensor = _Pooled.apply(
        matrix, *rows[:3], _Settings(rows.window, shape, matrix.shape[1], size)
    )[0]
    return y


class _Settings(NamedTuple):
    window: Any
    """Of the convolution."""
    shape: tuple[int, ...]
    """T, B, H, W, O of the product."""
    length: int
    """K, and one for a bias."""
    size: tuple[int, int]
    """Of a window of the pooling."""

    @property
    def pooled(self) -> tuple[int, ...]:
        """T, B, H', W', O."""
        count, samples, height, width, outputs = self.shape
        return count, samples, height // self.size[0], width // self.size[1], outputs


class _Products:
    """Rows times a matrix, and the transpose, a block at a time, in memory that is used again."""

    def __init__(self, kept: tuple[Tensor | None, ...], settings: _Settings, like: Tensor) -> None:
        self._held, self._pictures, self._mean = kept
        count, samples, height, width, outputs = settings.shape
        each = height * width
        size = samples * each * max(settings.length, outputs) * like.element_size()
        self.blocks = Blocks.of(count, samples, each, size, cached=True)
        self._z = like.new_empty(math.prod(self.blocks.lead), height, width, outputs)
        if self._pictures is not None:
            lead = (*self.blocks.lead, *self._pictures.shape[2:])
            self._columns = Columns(self._pictures, settings.window, lead)
        self.kernels = kernels_for(like.detach())

    def memory(self, block: Block) -> Tensor:
        """Pictures ``[n, H, W, O]`` of a block, to be filled."""
        tasks, samples = (part.stop - part.start for part in block[:2])
        return self._z[: tasks * samples]

    def times(self, matrix: Tensor, block: Block) -> Tensor:
        """Pictures ``[n, H, W, O]`` that are rows · matrix, which hold until the next block."""
        z, own = self.memory(block), matrix[block.tasks]
        out = z.view(len(own), math.prod(z.shape[:3]) // len(own), z.shape[-1])
        if self._held is not None:
            torch.bmm(block.of(self._held), own, out=out)
            return z
        rows = self._rows(block)
        length = rows.shape[-1]
        if own.shape[1] == length:
            torch.bmm(rows, own, out=out)
        else:
            torch.baddbmm(own[:, length:], rows, own[:, :length], out=out)
        return z

    def add_back(self, z: Tensor, block: Block, total: Tensor) -> None:
        """Write rowsᵀ · z to its tasks' part of a total, or add it to what samples have left."""
        own = total[block.tasks]
        z = z.view(len(own), math.prod(z.shape[:3]) // len(own), z.shape[-1])
        if self._held is not None:
            block.add_product(block.of(self._held), z, total)
            return
        rows = self._rows(block)
        length = rows.shape[-1]
        block.add_product(rows, z, total[:, :length])
        if own.shape[1] > length:
            bias = z.sum(1, keepdim=True)
            if block.samples.start:
                own[:, length:] += bias
            else:
                own[:, length:] = bias

    def _rows(self, block: Block) -> Tensor:
        """``[t, n, K]``."""
        assert self._pictures is not None and self._mean is not None
        columns = self.blocks.columns(self._columns, self._pictures, block)
        mean = self._mean[block.tasks]
        return columns - mean if self._columns.window.is_pixel else columns.sub_(mean)


def _part(tensor: Tensor, block: Block) -> Tensor:
    """A block of ``[T, B, ...]``, as ``[n, ...]``."""
    return tensor[block.tasks, block.samples].flatten(0, 1)


class _Pooled(Function):
    """``m → (y, codes)``."""

    @staticmethod
    def forward(
        ctx: Any,
        matrix: Tensor,
        held: Tensor | None,
        pictures: Tensor | None,
        mean: Tensor | None,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor]:
        kept = held, pictures, mean
        products, kernels = _Products(kept, settings, matrix), kernels_for(matrix.detach())
        if kernels is None:
            raise RuntimeError("pooling in blocks needs the compiled kernels")
        y = matrix.new_empty(settings.pooled)
        codes = torch.empty(settings.pooled, dtype=torch.uint8, device=matrix.device)
        for block in products.blocks:
            z = products.times(matrix, block)
            kernels.pool(z, settings.size, _part(y, block), _part(codes, block), rectify=True)
        ctx.settings = settings
        ctx.mark_non_differentiable(codes)
        ctx.save_for_backward(codes, *kept)
        return y, codes

    @staticmethod
    @typed_as_forward
    def backward(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        dm = _PooledBackward.apply(dy, *ctx.saved_tensors, ctx.settings)
        return dm, None, None, None, None


class _PooledBackward(Function):
    """``dy → dm``, linear; its backward is y's own product at the places that the codes fix."""

    @staticmethod
    def forward(
        ctx: Any,
        dy: Tensor,
        codes: Tensor,
        held: Tensor | None,
        pictures: Tensor | None,
        mean: Tensor | None,
        settings: _Settings,
    ) -> Tensor:
        kept = held, pictures, mean
        ctx.settings = settings
        ctx.save_for_backward(codes, *kept)
        dy = dy.contiguous().resolve_neg()
        products = _Products(kept, settings, dy)
        total = dy.new_empty(len(dy), settings.length, dy.shape[-1])
        for block in products.blocks:
            z = products.memory(block)
            put_back(products.kernels, _part(dy, block), settings.size, _part(codes, block), z)
            products.add_back(z, block, total)
        return total

    @staticmethod
    @typed_as_forward
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError("third derivatives of a pooled convolution of data")
        codes, *kept = ctx.saved_tensors
        u = u.resolve_neg()
        products = _Products(tuple(kept), ctx.settings, u)
        gdy = u.new_empty(ctx.settings.pooled)
        for block in products.blocks:
            z = products.times(u, block)
            to = _part(gdy, block)
            take(products.kernels, z, ctx.settings.size, _part(codes, block), to)
        return gdy, None, None, None, None, None
