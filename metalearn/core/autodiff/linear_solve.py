"""Conjugate gradients on lists of leaves, for one task or for T tasks with a leading axis.

Axes: T tasks, P parameters (all elements of all leaves of a task).
Source: Hestenes and Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metalearn.core.autodiff.backend import Values

__all__ = ["add_multiple", "conjugate_gradients", "difference", "euclidean_norm", "inner_product"]


def conjugate_gradients(
    product: Callable[[Values], Values],
    target: Values,
    like: Tensor,
    iterations: int,
    *,
    tolerance: float | None = None,
) -> tuple[Values, Tensor]:
    """Solve product(x) = target; x and ‖product(x) − target‖ / ‖target‖, each task by itself.

    Args:
        product: a symmetric positive definite matrix times a vector.
        target: leaves of one task, or ``[T, ...]`` of T tasks.
        like: a scalar, or ``[T]``: the shape of an inner product.
        iterations: at most P of them are of use.
        tolerance: end before that once the residuals of all tasks, as the iteration knows them, are
            as small; reads values after every iteration, so that it is not for use inside vmap.

    A task whose curvature along a direction is not positive stays where it is from then on.
    """
    x = [torch.zeros_like(v) for v in target]
    residual, direction = list(target), list(target)
    square = inner_product(residual, residual, like)
    tiny = torch.finfo(like.dtype).tiny
    going = torch.ones_like(like, dtype=torch.bool)
    enough = square * (tolerance or 0.0) ** 2
    for _ in range(iterations):
        curved = product(direction)
        curvature = inner_product(direction, curved, like)
        going = going & (curvature > tiny)
        alpha = torch.where(going, square / torch.where(going, curvature, 1.0), 0.0)
        x = add_multiple(x, alpha, direction)
        residual = add_multiple(residual, -alpha, curved)
        following = inner_product(residual, residual, like)
        beta = following / square.clamp_min(tiny)
        direction, square = add_multiple(residual, beta, direction), following
        if tolerance is not None and bool((~going | (square <= enough)).all()):
            break
    error = difference(product(x), target)
    return x, euclidean_norm(error, like) / euclidean_norm(target, like).clamp_min(tiny)


def difference(left: Values, right: Values) -> Values:
    """``left − right``."""
    return [a - b for a, b in zip(left, right)]


def inner_product(left: Values, right: Values, like: Tensor) -> Tensor:
    """Inner product over all leaves, in the shape of a loss: a scalar, or one for each task."""
    total = torch.zeros_like(like)
    for a, b in zip(left, right):
        total = total + (a * b).reshape(*like.shape, -1).sum(-1)
    return total


def euclidean_norm(values: Values, like: Tensor) -> Tensor:
    """Euclidean norm over all leaves, in the shape of ``like``."""
    return inner_product(values, values, like).sqrt()


def add_multiple(values: Values, factor: Tensor, others: Values) -> Values:
    """Values + factor · others, the factor a scalar or one for each task."""
    return [
        a + factor.reshape(factor.shape + (1,) * (a.dim() - factor.dim())) * b
        for a, b in zip(values, others)
    ]
