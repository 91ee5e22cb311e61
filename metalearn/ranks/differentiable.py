"""Sums over ranks that gradients go through, as often as they are differentiated.

What all ranks have alike becomes, by `spread`, what each uses by itself; what each has found
becomes, by `total`, what all have alike. One is the transpose of the other, so that a function
that goes through both has on every rank the derivatives, of any order, of the whole.
Axes: R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.ranks.protocol import Ranks

__all__ = ["spread", "total"]


def spread(values: Sequence[Tensor], ranks: Ranks) -> list[Tensor]:
    """The values, for use in what a rank computes of its part; one message on each way back.

    All ranks have to differentiate them together, in functions of the same operations.
    """
    return list(_Spread.apply(ranks, *values)) if values else []  # type: ignore[no-untyped-call]


def total(value: Tensor, ranks: Ranks) -> Tensor:
    """The sum over ranks, by one message; alike on all."""
    (found,) = _Total.apply(ranks, value)  # type: ignore[no-untyped-call]
    result: Tensor = found
    return result


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks = ranks
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return None, *_Total.apply(ctx.ranks, *grads)  # type: ignore[no-untyped-call]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks = ranks
        found = ranks.sums({str(index): value for index, value in enumerate(values)})
        return tuple(found.values())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return None, *_Spread.apply(ctx.ranks, *grads)  # type: ignore[no-untyped-call]
