"""Gradients of matrices for many samples, as sums of outer products or of rows by index.

Axes: N samples, R other samples, S and T positions of a sample, O rows and I columns of a matrix, V
rows of a table, D numbers of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.core.precision import widened
from metalearn.core.samples.sample_gradients import (
    SLICE,
    FormedGradients,
    SampleGradients,
    check_rows,
)
from metalearn.errors import SettingError, check_whole

__all__ = [
    "IndexedRows",
    "OuterProducts",
    "norms_of_products",
    "positions",
    "products",
    "split_together",
    "squared_lengths",
    "takes_gram",
]


_BY_MEANS = 32.0  # of a sum Lᵀ·1 that is zero but for rounding
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class OuterProducts(SampleGradients):
    """g = Σ_s l_s·r_sᵀ, a matrix ``[O, I]``, from ``left [N, ..., O]`` and ``right [N, ..., I]``.

    For ``F.linear`` l is the gradient of the output and r the input; with ``inputs_first``, as for
    ``x @ W``, it is the other way round, which matters to Kronecker factors alone.
    """

    groups = 1

    def __init__(self, left: Tensor, right: Tensor, *, inputs_first: bool = False) -> None:
        self.inputs_first = inputs_first
        self.left = positions(check_rows("left", left, 2))
        self.right = positions(check_rows("right", right, 2))
        if self.left.shape[:2] != self.right.shape[:2]:
            accepted = "samples and positions like those of left are needed"
            raise SettingError("right", tuple(right.shape), accepted)

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return self.left.shape[2], self.right.shape[2]

    @property
    def count(self) -> int:  # noqa: D102
        return len(self.left)

    def formed(self) -> Tensor:  # noqa: D102
        return products(self.left, self.right)

    def samples(self, first: int, stop: int) -> SampleGradients:  # noqa: D102
        return self._of(self.left[first:stop], self.right[first:stop])

    def squared_norms(self) -> Tensor:  # noqa: D102
        return norms_of_products(widened(self.left), widened(self.right))

    def in_short(self, room: int) -> tuple[SampleGradients, int]:  # noqa: D102
        left, right, size = widened(self.left), widened(self.right), math.prod(self.shape)
        more = size * self.count - left.numel() - right.numel()
        if left.shape[1] == 1 or takes_gram(left.shape[1], *self.shape) or more > room:
            return self, 0
        formed = left.new_empty(self.count, *self.shape)
        squares = [_product_into(*piece) for piece in split_together(size, left, right, formed)]
        return FormedGradients(formed, torch.cat(squares)), more

    def sum_of_squares(self) -> Tensor:  # noqa: D102
        if self.left.shape[1] != 1:
            return super().sum_of_squares()
        left, right = widened(self.left)[:, 0], widened(self.right)[:, 0]
        return left.square().mT @ right.square()

    def weighted_sum(self, weights: Tensor) -> Tensor:  # noqa: D102
        left, right = widened(self.left), widened(self.right)
        by_sample = weights.to(left.dtype)[:, None, None]
        if left.shape[2] <= right.shape[2]:
            left = left * by_sample
        else:
            right = right * by_sample
        return left.flatten(0, 1).mT @ right.flatten(0, 1)

    def gram(self, other: SampleGradients) -> Tensor | None:
        """With others of the kind: Σ_st ⟨l_rs, l_it⟩·⟨r_rs, r_it⟩, where that takes less."""
        if not isinstance(other, OuterProducts):
            return None
        places, sizes = self.left.shape[1] * other.left.shape[1], self.shape
        if places * sum(sizes) > math.prod(sizes):
            return None
        left, right = widened(self.left), widened(self.right)
        pieces = split_together(places * self.count, widened(other.left), widened(other.right))
        return torch.cat([(_pairs(left, a) * _pairs(right, b)).sum((1, 3)) for a, b in pieces], 1)

    def joins(self, other: SampleGradients) -> bool:  # noqa: D102
        return isinstance(other, OuterProducts)

    def joined(self, others: Sequence[Any]) -> SampleGradients:  # noqa: D102
        every = (self, *others)
        left, right = [g.left for g in every], [g.right for g in every]
        return self._of(torch.cat(left, 1), torch.cat(right, 1))

    def transposed(self) -> SampleGradients:  # noqa: D102
        return OuterProducts(self.right, self.left, inputs_first=not self.inputs_first)

    def input_rows(self) -> Tensor:  # noqa: D102
        return self.left if self.inputs_first else self.right

    def output_rows(self) -> Tensor:  # noqa: D102
        return self.right if self.inputs_first else self.left

    def _of(self, left: Tensor, right: Tensor) -> OuterProducts:
        return OuterProducts(left, right, inputs_first=self.inputs_first)


class IndexedRows(SampleGradients):
    """Rows added to a table ``[V, D]`` of zeros, from ``index [N, ...]`` and ``rows [N, ..., D]``.

    For ``F.embedding`` the rows are the gradients of the output.
    """

    def __init__(self, index: Tensor, rows: Tensor, length: int) -> None:
        index = check_rows("index", index, 1)
        if index.dtype not in _WHOLE:
            raise SettingError("index", index.dtype, "whole numbers are needed")
        check_whole("length", length, 1)
        self.rows, self.length = positions(check_rows("rows", rows, 2)), length
        self.index = index.reshape(len(index), math.prod(index.shape[1:])).long()
        if self.index.shape != self.rows.shape[:2]:
            raise SettingError("rows", tuple(rows.shape), "one for each index is needed")

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return self.length, self.rows.shape[2]

    @property
    def count(self) -> int:  # noqa: D102
        return len(self.rows)

    def formed(self) -> Tensor:  # noqa: D102
        empty = self.rows.new_zeros(self.count, *self.shape)
        return empty.scatter_add(1, self.index.unsqueeze(-1).expand(self.rows.shape), self.rows)

    def samples(self, first: int, stop: int) -> SampleGradients:  # noqa: D102
        return IndexedRows(self.index[first:stop], self.rows[first:stop], self.length)

    def squared_norms(self) -> Tensor:  # noqa: D102
        rows, places = widened(self.rows), self.index.shape[1]
        if places == 1:
            return squared_lengths(rows)
        pieces = split_together(places * places, self.index, rows)
        return torch.cat([_norms_of_rows(*piece) for piece in pieces])

    def weighted_sum(self, weights: Tensor) -> Tensor:  # noqa: D102
        rows = widened(self.rows)
        rows = (rows * weights.to(rows.dtype)[:, None, None]).flatten(0, 1)
        return rows.new_zeros(self.shape).index_add(0, self.index.flatten(), rows)

    def inner_products(self, other: SampleGradients) -> Tensor | None:
        """With Σ_t l_t·r_tᵀ: Σ_s ⟨row_s, Σ_t l_t[index_s]·r_t⟩."""
        if not isinstance(other, OuterProducts):
            return None
        places = self.index.shape[1] * other.left.shape[1]
        pieces = split_together(places, self.index, self.rows, other.left, other.right)
        return torch.cat([_rows_with_products(*piece) for piece in pieces])

    def gram(self, other: SampleGradients) -> Tensor | None:
        """With others of the kind: the products of rows that have one index."""
        if not isinstance(other, IndexedRows):
            return None
        rows, size = widened(self.rows), self.index.numel() * other.index.shape[1]
        pieces = split_together(size, other.index, widened(other.rows))
        return torch.cat([_same_rows(self.index, rows, *piece) for piece in pieces], 1)

    def joins(self, other: SampleGradients) -> bool:  # noqa: D102
        return isinstance(other, IndexedRows)

    def joined(self, others: Sequence[Any]) -> SampleGradients:  # noqa: D102
        every = (self, *others)
        index, rows = [g.index for g in every], [g.rows for g in every]
        return IndexedRows(torch.cat(index, 1), torch.cat(rows, 1), self.length)


def positions(x: Tensor) -> Tensor:
    """``[N, ..., I]`` to ``[N, S, I]``."""
    return x if x.dim() == 3 else x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])


def products(left: Tensor, right: Tensor) -> Tensor:
    """Lᵀ·R: ``[N, O, I]`` from ``[N, S, O]`` and ``[N, S, I]``."""
    return left.mT * right if left.shape[1] == 1 else torch.bmm(left.mT, right)


def norms_of_products(left: Tensor, right: Tensor) -> Tensor:
    """‖Lᵀ·R‖² ``[N]``, from the Gram matrices L·Lᵀ and R·Rᵀ or from the product, whichever is less.

    ‖Lᵀ·R‖² = ⟨L·Lᵀ, R·Rᵀ⟩ (Goodfellow 2015, arXiv 1510.01799; Li et al. 2021, arXiv 2110.05679).
    """
    places, outputs, inputs = left.shape[1], left.shape[2], right.shape[2]
    if places == 1:
        return squared_lengths(right) * squared_lengths(left)
    if takes_gram(places, outputs, inputs):
        size, norm = places * max(places, inputs + outputs), _gram_norms
    else:
        size, norm = inputs * outputs, _product_norms
    return torch.cat([norm(*piece) for piece in split_together(size, left, right)])


def takes_gram(places: int, outputs: int, inputs: int) -> bool:
    """Whether Gram matrices of so many positions take less than the product of a sample."""
    return places * (inputs + outputs) <= inputs * outputs


def squared_lengths(x: Tensor) -> Tensor:
    """Sums of squares ``[N]``, without a copy of squares."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.square()


def split_together(size: int, *tensors: Tensor) -> Iterator[Any]:
    """The tensors' samples, so many at a time that ``size`` numbers for each fit in a slice."""
    step = max(1, SLICE // max(1, size))
    return zip(*(t.split(step) for t in tensors))  # type: ignore[no-untyped-call]


def _product_into(left: Tensor, right: Tensor, formed: Tensor) -> Tensor:
    """Squared norms of products, which are written to ``formed``."""
    return squared_lengths(torch.bmm(left.mT, right, out=formed))


def _gram_norms(left: Tensor, right: Tensor) -> Tensor:
    """From Gram matrices of ``left`` and of what ``right`` has beyond its mean over positions.

    R = R' + 1·mᵀ, so that Lᵀ·R = Lᵀ·R' + (Lᵀ·1)·mᵀ. Where positions are nearly the same and the sum
    Lᵀ·1 nearly zero, as of the keys of attention, terms ⟨l_s, l_t⟩·‖m‖² would leave nothing but
    their rounding.

    Where terms cancel in another way the squares are still known no better than to ε·(Σ_s
    ‖l_s‖·‖r_s‖)², ε the spacing of numbers at 1. So much is added: a norm may come out too large,
    and a gradient be clipped too much, but it is not clipped too little, on which privacy rests.
    """
    mean = right.sum(1, keepdim=True) / max(1, right.shape[1])
    total = left.sum(1, keepdim=True)
    rest = right - mean
    lefts, rights = torch.bmm(left, left.mT), torch.bmm(rest, rest.mT)
    both = torch.bmm(left, total.mT) * torch.bmm(rest, mean.mT)
    ends = squared_lengths(total) * squared_lengths(mean)
    norms = (rights * lefts).sum((1, 2)) + 2 * both.sum((1, 2)) + ends
    long = lefts.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    apart = (long * rights.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()).sum(1)
    whole = apart + long.sum(1) * squared_lengths(mean).sqrt()
    spacing = torch.finfo(norms.dtype).eps
    by_terms = 2 * spacing * (apart + ends.sqrt()).square()
    return norms + by_terms + (_BY_MEANS * spacing * whole).square()


def _product_norms(left: Tensor, right: Tensor) -> Tensor:
    return squared_lengths(torch.bmm(left.mT, right))


def _pairs(x: Tensor, y: Tensor) -> Tensor:
    """⟨x_rs, y_it⟩ ``[R, S, N, T]``."""
    found: Tensor = torch.tensordot(x, y, dims=([2], [2]))
    return found


def _same_rows(index: Tensor, rows: Tensor, other: Tensor, others: Tensor) -> Tensor:
    same = index[:, :, None, None] == other[None, None]
    return torch.where(same, _pairs(rows, others), 0.0).sum((1, 3))


def _norms_of_rows(index: Tensor, rows: Tensor) -> Tensor:
    """With what rounding may have taken away where rows cancel, as in `_gram_norms`."""
    same = (index.unsqueeze(1) == index.unsqueeze(2)).to(rows.dtype)
    lengths = torch.linalg.vector_norm(rows, dim=2, keepdim=True)
    terms: Tensor = (torch.bmm(same, lengths) * lengths).sum((1, 2))
    return (torch.bmm(same, rows) * rows).sum((1, 2)) + 2 * torch.finfo(rows.dtype).eps * terms


def _rows_with_products(index: Tensor, rows: Tensor, left: Tensor, right: Tensor) -> Tensor:
    rows, left, right = widened(rows), widened(left), widened(right)
    size = (len(left), left.shape[1], index.shape[1])
    at_index = left.gather(2, index.unsqueeze(1).expand(size))
    return (torch.bmm(at_index.mT, right) * rows).sum((1, 2))
