"""Means and sums over a batch, taken over each of its samples alone, without a ``vmap``.

Axes: N samples in front, ``[...]`` what a sample has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["reduced_by_sample"]


def reduced_by_sample(function: Any, args: Any, kwargs: Any) -> Tensor | None:
    """``[N]``: what the function gives of each sample as a batch of one; None if it is not known.

    Args:
        function: such as ``F.cross_entropy``.
        args: of a batch, all of whose tensors have samples in front.
        kwargs: the same.
    """
    known = _KNOWN.get(function)
    return None if known is None else known(*args, **kwargs)


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor | None:
    """Means are over the labels that are not ignored, and not a number where there are none."""
    if weight is not None or target.is_floating_point() or (size_average, reduce) != (None, None):
        return None
    losses = F.cross_entropy(
        input, target, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
    )
    counted = None if reduction == "sum" else target != ignore_index
    if counted is not None and counted.dim() > 1:
        counted = counted.flatten(1).sum(1)
    return _reduced(losses, reduction, counted)


def _elementwise(function: Callable[..., Tensor]) -> Callable[..., Tensor | None]:
    """Of losses of an input and a target like it."""

    def loss(
        input: Tensor, target: Tensor, *rest: Any, reduction: str = "mean", **others: Any
    ) -> Tensor | None:
        if rest or input.shape != target.shape:
            return None
        return _reduced(function(input, target, reduction="none", **others), reduction)

    return loss


def _of_all(reduction: str) -> Callable[..., Tensor | None]:
    """Of ``x.mean()`` and ``x.sum()``."""

    def reduce(input: Tensor, *rest: Any, **others: Any) -> Tensor | None:
        return None if rest or others else _reduced(input, reduction)

    return reduce


def _reduced(losses: Tensor, reduction: str, counted: Tensor | None = None) -> Tensor | None:
    if reduction not in ("mean", "sum"):
        return None
    single = losses.dim() == 1
    if counted is not None:
        return (losses if single else losses.flatten(1).sum(1)) / counted
    if single:
        return losses
    each = losses.flatten(1)
    return each.sum(1) if reduction == "sum" else each.mean(1)


_KNOWN: dict[Any, Callable[..., Tensor | None]] = {
    F.cross_entropy: _cross_entropy,
    F.mse_loss: _elementwise(F.mse_loss),
    F.l1_loss: _elementwise(F.l1_loss),
    F.smooth_l1_loss: _elementwise(F.smooth_l1_loss),
    F.huber_loss: _elementwise(F.huber_loss),
    F.binary_cross_entropy_with_logits: _elementwise(F.binary_cross_entropy_with_logits),
    torch.mean: _of_all("mean"), torch.Tensor.mean: _of_all("mean"),
    torch.sum: _of_all("sum"), torch.Tensor.sum: _of_all("sum"),
}  # fmt: skip
