"""Gradients of parameters that several calls use, whole or by their rows.

Axes: N samples, R other samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from metalearn.core.precision import widened
from metalearn.core.samples.sample_gradients import FormedGradients, SampleGradients

__all__ = [
    "RowSlice",
    "formed_total",
    "gram_of_totals",
    "inner_products",
    "squared_norms_of_total",
    "sum_of_squares_of_total",
    "weighted_total",
]


def squared_norms_of_total(parts: Sequence[SampleGradients]) -> Tensor:
    """‖Σ_k g_ik‖² ``[N]`` of a parameter whose gradient comes in several parts k.

    Where parts cancel it is known no better than to ε·‖g_ik‖·‖g_il‖, ε the spacing of numbers at 1;
    so much is added, that no norm comes out too small.
    """
    parts = _joined(parts)
    squares = [part.squared_norms() for part in parts]
    total = reduce(torch.add, squares)
    for one, other in combinations(range(len(parts)), 2):
        if not parts[one].is_apart_from(parts[other]):
            total = total + 2 * inner_products(parts[one], parts[other])
            around = (squares[one] + squares[other]).clamp_min(0)
            total = total + 4 * torch.finfo(total.dtype).eps * around
    return total


def sum_of_squares_of_total(parts: Sequence[SampleGradients]) -> Tensor:
    """Σ_i (Σ_k g_ik)², element by element."""
    one, *more = _joined(parts)
    if more:
        one = FormedGradients(formed_total([one, *more]))
    return one.sum_of_squares()


def weighted_total(parts: Sequence[SampleGradients], weights: Tensor) -> Tensor:
    """Σ_i c_i Σ_k g_ik."""
    return reduce(torch.add, [part.weighted_sum(weights) for part in _joined(parts)])


def formed_total(parts: Sequence[SampleGradients]) -> Tensor:
    """Σ_k g_ik, ``[N, *shape]``."""
    return reduce(torch.add, [part.formed() for part in parts])


def gram_of_totals(parts: Sequence[SampleGradients], others: Sequence[SampleGradients]) -> Tensor:
    """⟨Σ_k g_rk, Σ_k h_ik⟩ ``[R, N]`` with the parts of other samples' gradients."""
    ours, theirs = _joined(parts), _joined(others)
    met = [(a, b) for a in ours for b in theirs if not a.is_apart_from(b)]
    found = [a.gram(b) for a, b in met]
    known = [gram for gram in found if gram is not None]
    if known and len(known) == len(found):
        return reduce(torch.add, known)
    size = math.prod(ours[0].shape)
    left, right = (widened(formed_total(x)).reshape(x[0].count, size) for x in (ours, theirs))
    return left @ right.mT


def _joined(parts: Sequence[SampleGradients]) -> list[SampleGradients]:
    """As few parts with the same sum."""
    kept, left = [], list(parts)
    while left:
        first, *others = left
        same = [part for part in others if first.joins(part)]
        kept.append(first.joined(same) if same else first)
        left = [part for part in others if not first.joins(part)]
    return kept


def inner_products(one: SampleGradients, other: SampleGradients) -> Tensor:
    """⟨g_i, h_i⟩ ``[N]`` of two parts of one parameter's gradient."""
    for a, b in ((one, other), (other, one)):
        found = a.inner_products(b)
        if found is not None:
            return found
    pairs = ((a.formed(), b.formed()) for a, b in zip(one.slices(), other.slices()))
    return torch.cat([(widened(g) * widened(h)).flatten(1).sum(1) for g, h in pairs])


class RowSlice(SampleGradients):
    """Gradients of some rows of a parameter of ``length``, from ``first`` on; zero elsewhere."""

    def __init__(self, inside: SampleGradients, first: int, length: int) -> None:
        self.inside, self.first, self.length = inside, first, length

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return self.length, *self.inside.shape[1:]

    @property
    def count(self) -> int:  # noqa: D102
        return self.inside.count

    def formed(self) -> Tensor:  # noqa: D102
        return self._among_zeros(self.inside.formed(), 1)

    def samples(self, first: int, stop: int) -> SampleGradients:  # noqa: D102
        return RowSlice(self.inside.samples(first, stop), self.first, self.length)

    def squared_norms(self) -> Tensor:  # noqa: D102
        return self.inside.squared_norms()

    def weighted_sum(self, weights: Tensor) -> Tensor:  # noqa: D102
        return self._among_zeros(self.inside.weighted_sum(weights), 0)

    def sum_of_squares(self) -> Tensor:  # noqa: D102
        return self._among_zeros(self.inside.sum_of_squares(), 0)

    def inner_products(self, other: SampleGradients) -> Tensor | None:  # noqa: D102
        same = isinstance(other, RowSlice) and other._rows == self._rows
        return inner_products(self.inside, other.inside) if same else None  # type: ignore[attr-defined]

    def is_apart_from(self, other: SampleGradients) -> bool:  # noqa: D102
        if not isinstance(other, RowSlice):
            return False
        return self._rows[1] <= other._rows[0] or other._rows[1] <= self._rows[0]

    def joins(self, other: SampleGradients) -> bool:  # noqa: D102
        same = isinstance(other, RowSlice) and other._rows == self._rows
        return same and self.inside.joins(other.inside)  # type: ignore[attr-defined]

    def joined(self, others: Sequence[Any]) -> SampleGradients:  # noqa: D102
        inside = self.inside.joined([other.inside for other in others])
        return RowSlice(inside, self.first, self.length)

    @property
    def _rows(self) -> tuple[int, int]:
        return self.first, self.first + self.inside.shape[0]

    def _among_zeros(self, rows: Tensor, axis: int) -> Tensor:
        before, after = list(rows.shape), list(rows.shape)
        before[axis], after[axis] = self._rows[0], self.length - self._rows[1]
        return torch.cat((rows.new_zeros(before), rows, rows.new_zeros(after)), axis)
