"""Gradients of one parameter for many samples, as what makes them up.

Norms, weighted sums, inner products and Gram matrices follow from the factors that a layer gives;
the gradients themselves, N times as large as the parameter, need not be formed.
Axes: N samples, R other samples.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from metalearn.core.precision import squares, widened
from metalearn.errors import SettingError
from metalearn.reprs import counted, one_line

__all__ = [
    "SLICE",
    "FormedGradients",
    "KnownNorms",
    "SampleGradients",
    "check_rows",
]

SLICE = 2**18
"""Elements of gradients that are held at once where norms need them."""


class SampleGradients(ABC):
    """Gradients ``[N, *shape]`` of one parameter, whatever makes them up.

    A kind of one's own needs `shape`, `count`, `formed` and `samples`; what the others gain is that
    few gradients, or none, are held at once.
    """

    groups: int = 0
    """Of how many products of a matrix with inputs they are the gradients; 0 of none."""
    inputs_first: bool = False
    """Whether the rows of the matrix belong to inputs, and its columns to outputs."""

    def __repr__(self) -> str:
        return one_line(self, counted(self.count, "sample"), f"parameter {list(self.shape)}")

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """That of the parameter."""

    @property
    @abstractmethod
    def count(self) -> int:
        """N."""

    @abstractmethod
    def formed(self) -> Tensor:
        """The gradients, ``[N, *shape]``."""

    @abstractmethod
    def samples(self, first: int, stop: int) -> SampleGradients:
        """Those of the samples ``first`` to ``stop``."""

    def squared_norms(self) -> Tensor:
        """‖g_i‖² ``[N]``, in float32 at least."""
        return torch.cat([squares(part.formed()) for part in self.slices()])

    def sum_of_squares(self) -> Tensor:
        """Σ_i g_i², element by element, of the parameter's shape."""
        return reduce(torch.add, [widened(p.formed()).square().sum(0) for p in self.slices()])

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Σ c_i·g_i for weights c ``[N]``, of the parameter's shape."""
        parts = list(self.slices())
        shares = weights.split(parts[0].count)  # type: ignore[no-untyped-call]
        sums = [FormedGradients(p.formed()).weighted_sum(c) for p, c in zip(parts, shares)]
        total: Tensor = reduce(torch.add, sums)
        return total

    def in_short(self, room: int) -> tuple[SampleGradients, int]:
        """The same for `squared_norms` and `weighted_sum` alone, in whatever makes both quickest.

        Args:
            room: how many numbers more than these it may hold.

        Returns:
            The gradients, and how many numbers more they hold; below 0 for fewer.
        """
        return self, 0

    def inner_products(self, other: SampleGradients) -> Tensor | None:
        """⟨g_i, h_i⟩ ``[N]`` with other gradients of the parameter; None to have both formed."""
        return None

    def gram(self, other: SampleGradients) -> Tensor | None:
        """⟨g_r, h_i⟩ ``[R, N]`` with those of other samples; None to have both formed."""
        return None

    def is_apart_from(self, other: SampleGradients) -> bool:
        """Whether no element of the parameter is reached by both."""
        return False

    def joins(self, other: SampleGradients) -> bool:
        """Whether the sum with these is of the same kind again."""
        return False

    def joined(self, others: Sequence[Any]) -> SampleGradients:
        """The sum with others that it `joins`."""
        raise NotImplementedError(f"{type(self).__name__} joins no others")

    def transposed(self) -> SampleGradients:
        """Those of the parameter whose transpose these are the gradients of."""
        return FormedGradients(self.formed().mT)

    def input_rows(self) -> Tensor:
        """``[N, S, I]``, of G > 1 groups ``[N, G, S, I]``: inputs of the products."""
        raise NotImplementedError(f"{type(self).__name__} are not those of matrix products")

    def output_rows(self) -> Tensor:
        """``[N, S, O]``, of G > 1 groups ``[N, G, S, O/G]``: gradients of what they gave."""
        raise NotImplementedError(f"{type(self).__name__} are not those of matrix products")

    def slices(self) -> Iterator[SampleGradients]:
        """As many samples at a time as memory should hold gradients of."""
        step = max(1, SLICE // max(1, math.prod(self.shape)))
        for first in range(0, self.count, step):
            yield self.samples(first, min(first + step, self.count))


class FormedGradients(SampleGradients):
    """Gradients ``[N, *shape]`` as they are: of vectors, and of what no rule has factors for."""

    def __init__(self, gradients: Tensor, squared_norms: Tensor | None = None) -> None:
        self.gradients = check_rows("gradients", gradients, 1)
        self._squares = squared_norms

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return tuple(self.gradients.shape[1:])

    @property
    def count(self) -> int:  # noqa: D102
        return len(self.gradients)

    def formed(self) -> Tensor:  # noqa: D102
        return self.gradients

    def samples(self, first: int, stop: int) -> SampleGradients:  # noqa: D102
        return FormedGradients(self.gradients[first:stop])

    def squared_norms(self) -> Tensor:  # noqa: D102
        return squares(self.gradients) if self._squares is None else self._squares

    def weighted_sum(self, weights: Tensor) -> Tensor:  # noqa: D102
        wide = widened(self.gradients)
        total: Tensor = torch.tensordot(weights.to(wide.dtype), wide, 1)
        return total

    def joins(self, other: SampleGradients) -> bool:  # noqa: D102
        return isinstance(other, FormedGradients)

    def joined(self, others: Sequence[Any]) -> SampleGradients:  # noqa: D102
        return FormedGradients(reduce(torch.add, [g.gradients for g in (self, *others)]))


def check_rows(name: str, value: Any, axes: int) -> Tensor:
    """A tensor ``[N, ...]`` with at least so many axes; anything else is refused by its name."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.dim() < axes:
        got = (value.layout, *value.shape) if isinstance(value, Tensor) else value
        wanted = "samples in front" if axes == 1 else "samples in front and numbers at the end"
        raise SettingError(name, got, f"a dense tensor with {wanted} is needed")
    return value


class KnownNorms(SampleGradients):
    """Gradients of which nothing was kept but their squared norms ``[N]``."""

    def __init__(self, gradients: SampleGradients) -> None:
        self._shape, self._squares = gradients.shape, gradients.squared_norms()

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return self._shape

    @property
    def count(self) -> int:  # noqa: D102
        return len(self._squares)

    def formed(self) -> Tensor:  # noqa: D102
        raise RuntimeError("norms alone were kept of these gradients")

    def samples(self, first: int, stop: int) -> SampleGradients:  # noqa: D102
        raise RuntimeError("norms alone were kept of these gradients")

    def squared_norms(self) -> Tensor:  # noqa: D102
        return self._squares
