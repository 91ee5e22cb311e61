"""Where the samples are in tensors of a whole batch, against those of one sample.

Axes: N samples, ``[*one]`` the axes that a tensor has where the batch is one sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.core.float64 import widest

__all__ = ["FRONT", "Layout", "layouts_of", "same_values", "spread"]


class Layout(NamedTuple):
    """How a tensor of N samples is made of those of each."""

    axis: int | None
    """The one that is N times as long; None for one that stands in front of the others."""
    inner: bool = False
    """Whether it runs over samples first, and over what one sample has there second."""

    def shape(self, one: tuple[int, ...], count: int) -> tuple[int, ...]:
        """That of the batch's tensor."""
        if self.axis is None:
            return count, *one
        return *one[: self.axis], count * one[self.axis], *one[self.axis + 1 :]

    def by_sample(self, tensor: Tensor, count: int) -> Tensor:
        """A view ``[N, *one]``."""
        if self.axis is None:
            return tensor
        length = tensor.shape[self.axis] // count
        if self.inner:
            return torch.unflatten(tensor, self.axis, (length, count)).movedim(self.axis + 1, 0)
        apart = torch.unflatten(tensor, self.axis, (count, length))
        return apart if self.axis == 0 else apart.movedim(self.axis, 0)


FRONT = Layout(0)
"""That of what a loss is given: a batch whose first axis is of samples."""


def spread(output: Tensor, count: int) -> tuple[Tensor, Layout]:
    """What is the same for all samples, as often as there are samples."""
    if output.dim() and output.shape[0] == 1:
        return output.expand(count, *output.shape[1:]), FRONT
    return output.expand(count, *output.shape), Layout(None)


def layouts_of(tensor: Tensor, exact: Tensor) -> list[Layout]:
    """All layouts in which a batch's tensor is made of ``exact [N, *one]``, up to rounding."""
    count, *one = exact.shape
    fits = _by_shape(tuple(tensor.shape), tuple(one), count)
    return [layout for layout in fits if same_values(layout.by_sample(tensor, count), exact)]


def same_values(found: Tensor, exact: Tensor) -> bool:
    """Whether tensors of one shape differ by no more than rounding does."""
    if found.dtype != exact.dtype or found.shape != exact.shape or found.device != exact.device:
        return False
    if not exact.is_floating_point():
        return torch.equal(found, exact)
    wide, size = widest(exact), widest(exact).abs()
    top = float(torch.where(size.isfinite(), size, 0.0).max()) if size.numel() else 0.0
    allowed = math.sqrt(torch.finfo(exact.dtype).eps) * top
    return bool(torch.isclose(widest(found), wide, rtol=0, atol=allowed, equal_nan=True).all())


def _by_shape(shape: tuple[int, ...], one: tuple[int, ...], count: int) -> Iterator[Layout]:
    if shape == (count, *one):
        yield Layout(None)
    for axis, length in enumerate(one):
        if shape == Layout(axis).shape(one, count):
            yield Layout(axis)
            if length > 1:
                yield Layout(axis, inner=True)
