"""What the methods work on, and what they share: a task, the way to adapt to it, and its points.

With the backend `Eager` and leaves ``[T, ...]`` the same lines serve T tasks at once: losses are
``[T]``, and nothing mixes tasks.
Axes: T tasks, K inner steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.core.autodiff.backend import Eager, Values
from metalearn.core.meta.adaptation import InnerLoop
from metalearn.core.meta.step_weights import Weights, weighted
from metalearn.types import Batch

__all__ = ["AdaptedTask", "Implicit", "TaskGradient", "query_gradient", "walk"]


class Implicit(NamedTuple):
    """Settings of the implicit method."""

    regularization: float = 1.0
    """λ of the inner loss L(φ) + λ/2·‖φ − θ‖²."""
    iterations: int = 5
    """Of conjugate gradients."""
    damping: float = 0.0
    """δ, at least 0, of the system I + H/(λ + δ): above 0 it is definite where H + λI is not."""


class TaskGradient(NamedTuple):
    """What is found for one task (or T)."""

    grads: Values
    """Of each leaf."""
    optimizer_grads: Any
    """A tree like what the inner optimiser learns."""
    query_loss: Tensor
    support_losses: Any
    """K of them, each before its step."""
    diagnostics: dict[str, Tensor]


class AdaptedTask(NamedTuple):
    """What a method works on: a task, and the way to adapt to it."""

    loop: InnerLoop
    start: Values
    support: Batch
    query: Batch
    weights: Weights
    """Of the query losses at θ_0 … θ_K."""
    implicit: Implicit


class WalkPoint(NamedTuple):
    """A point of the inner loop on leaves."""

    values: Values
    state: Any
    """Of the optimiser."""
    slope: Values
    """Inner gradients that led here; none at the start."""
    loss: Tensor | None
    """Support loss before the step that led here; None at the start."""


def walk(
    loop: InnerLoop, start: Values, support: Batch, steps: int, *, first: int = 0, state: Any = None
) -> Iterator[WalkPoint]:
    """θ_0 … θ_K, nothing of which is differentiable; or θ_first … θ_K, from there and its state."""
    values, state = start, loop.start(start) if state is None else state
    eager = isinstance(loop.backend, Eager)
    yield WalkPoint(values, state, [], None)
    for k in range(first, steps):
        with torch.no_grad() if eager else nullcontext():
            slope, loss = loop.slope(values, loop.batch(support, k), differentiable=False)
            values, state = loop.advance(values, state, slope)
        yield WalkPoint(values, state, slope, loss)


def query_gradient(
    loop: InnerLoop, values: Values, query: Batch, weight: float | Tensor
) -> tuple[Values, Tensor]:
    """Gradient and value of the query loss, times its weight."""
    grads, value = loop.backend.gradient(
        lambda x: loop.loss(x, query), values, differentiable=False
    )
    if isinstance(weight, float) and weight == 1:
        return grads, value
    return [weighted(weight, g) for g in grads], weighted(weight, value)
