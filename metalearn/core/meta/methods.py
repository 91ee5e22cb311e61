"""The four ways to the gradient of the query loss after adaptation, each written for one task.

With `Eager` calculus and leaves ``[T, ...]`` the same lines serve T tasks at once: losses are
``[T]``, and nothing mixes tasks.
Axes: K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.core.autodiff.backend import Eager, Values
from metalearn.core.autodiff.linear_solve import (
    conjugate_gradients,
    difference,
    euclidean_norm,
    inner_product,
)
from metalearn.core.meta.adaptation import InnerLoop
from metalearn.core.tree import flatten, leaves, tree_map, unflatten
from metalearn.types import Batch

__all__ = ["METHODS", "AdaptedTask", "Implicit", "TaskGradient"]


class Implicit(NamedTuple):
    """Settings of the implicit method."""

    regularization: float = 1.0
    """λ of the inner loss L(φ) + λ/2·‖φ − θ‖²."""
    iterations: int = 5
    """Of conjugate gradients."""


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
    steps: int
    implicit: Implicit


def reverse(task: AdaptedTask) -> TaskGradient:
    """Through the unrolled loop: exact; memory grows with K."""
    given, start, support, query, steps, _ = task
    learnt, spec = flatten(given.optimizer.learnt)
    losses: list[Tensor] = []

    def query_loss(inputs: Values) -> Tensor:
        values = inputs[: len(start)]
        loop = given.with_learnt(unflatten(inputs[len(start) :], spec))
        state = loop.start(values)
        for _ in range(steps):
            values, state, loss = loop.step(values, state, support)
            losses.append(loss)
        return loop.loss(values, query)

    grads, value = given.calculus.gradient(query_loss, [*start, *learnt], differentiable=False)
    moved = unflatten(grads[len(start) :], spec)
    return TaskGradient(grads[: len(start)], moved, value, losses, {})


def first_order(task: AdaptedTask) -> TaskGradient:
    """The gradient at θ_K as if it were the one at θ."""
    loop, start, support, query, steps, _ = task
    points, losses = _walk(loop, start, support, steps, keep=False)
    grads, value = loop.calculus.gradient(
        lambda x: loop.loss(x, query), points[-1][0], differentiable=False
    )
    unmoved = tree_map(torch.zeros_like, loop.optimizer.learnt)
    return TaskGradient(grads, unmoved, value, losses, {})


def mixed(task: AdaptedTask) -> TaskGradient:
    """Keep θ_0 … θ_K (and the optimiser's states), walk back one recomputed step at a time.

    Exact. For a step θ' = θ + U(g(θ)) and a cotangent v the way back is v + H(θ)·(∂U/∂g)ᵀ·v; the
    Hessian product comes from differentiating the recomputed step in reverse, which on a CPU is
    faster than forward over reverse. Source: Kemaev et al., "Scalable Meta-Learning via Mixed-Mode
    Differentiation", ICML 2025.
    """
    loop, start, support, query, steps, _ = task
    points, losses = _walk(loop, start, support, steps, keep=True)
    values, state = points.pop()
    cotangent, query_loss = loop.calculus.gradient(
        lambda x: loop.loss(x, query), values, differentiable=False
    )
    learnt, spec = flatten(loop.optimizer.learnt)
    learnt_grads = [torch.zeros_like(v) for v in learnt]
    state_cotangent = [torch.zeros_like(part) for part in _tensors(state)]
    for _ in range(steps):
        values, state = points.pop()
        tensors = _tensors(state)

        def step(inputs: Values, state: Any = state) -> Values:
            supply = iter(inputs)
            values = [next(supply) for _ in start]
            state = tree_map(lambda x: next(supply) if isinstance(x, Tensor) else x, state)
            moved = loop.with_learnt(unflatten(list(supply), spec))
            values, state, _ = moved.step(values, state, support)
            return [*values, *_tensors(state)]

        pull = loop.calculus.pull(step, [*values, *tensors, *learnt])
        pulled = pull([*cotangent, *state_cotangent])
        cotangent, rest = pulled[: len(start)], pulled[len(start) :]
        state_cotangent = rest[: len(tensors)]
        learnt_grads = [a + b for a, b in zip(learnt_grads, rest[len(tensors) :])]
    return TaskGradient(cotangent, unflatten(learnt_grads, spec), query_loss, losses, {})


def implicit(task: AdaptedTask) -> TaskGradient:
    """Through the minimum φ of L(φ) + λ/2·‖φ − θ‖², not through the way there.

    The gradient of θ is x with (I + H(φ)/λ)·x = ∇L_query(φ), by conjugate gradients; exact as far
    as φ is a minimum and x solves the system. Frozen leaves ψ have ∇_ψ L_query − (∂²L/∂ψ∂φ)·x/λ;
    what the inner optimiser learns has gradients of zero. Diagnostics, one number a task:
    ``cg_residual`` is ‖(I + H/λ)·x − b‖ / ‖b‖, ``stationarity`` is ‖∇L(φ) + λ·(φ − θ)‖ divided by
    the same at θ. Source: Rajeswaran et al., "Meta-Learning with Implicit Gradients", NeurIPS 2019.
    """
    loop, start, support, query, steps, settings = task
    strength = settings.regularization
    anchor = loop.adapting(start)

    def regularized(values: Values, batch: Batch) -> Tensor:
        loss, moved = loop.loss(values, batch), difference(loop.adapting(values), anchor)
        return loss + 0.5 * strength * inner_product(moved, moved, loss)

    points, losses = _walk(replace(loop, loss=regularized), start, support, steps, keep=False)
    end = [v.detach() for v in points[-1][0]]
    query_grads, query_loss = loop.calculus.gradient(
        lambda x: loop.loss(x, query), end, differentiable=False
    )

    def slope(values: Values, differentiable: bool = True) -> Values:
        grads, _ = loop.calculus.gradient(
            lambda part: loop.loss(loop.merge(values, part), support),
            loop.adapting(values),
            differentiable=differentiable,
        )
        return grads

    pull = loop.calculus.pull(slope, end)

    def product(x: Values) -> Values:
        curved = loop.adapting(pull(x))
        return [a + h / strength for a, h in zip(x, curved)]

    target = loop.adapting(query_grads)
    solution, residual = conjugate_gradients(product, target, query_loss, settings.iterations)
    through = pull(solution)
    grads = [g - h / strength for g, h in zip(query_grads, through)]
    moved = difference(loop.adapting(end), anchor)
    force = [s + strength * d for s, d in zip(slope(end, False), moved)]
    initial = euclidean_norm(slope(start, False), query_loss)
    tiny = torch.finfo(query_loss.dtype).tiny
    diagnostics = {
        "cg_residual": residual,
        "stationarity": euclidean_norm(force, query_loss) / initial.clamp_min(tiny),
    }
    unmoved = tree_map(torch.zeros_like, loop.optimizer.learnt)
    return TaskGradient(loop.merge(grads, solution), unmoved, query_loss, losses, diagnostics)


METHODS: dict[str, Callable[[AdaptedTask], TaskGradient]] = {
    "reverse": reverse,
    "mixed": mixed,
    "first_order": first_order,
    "implicit": implicit,
}


def _walk(
    loop: InnerLoop, start: Values, support: Batch, steps: int, *, keep: bool
) -> tuple[list[tuple[Values, Any]], list[Tensor]]:
    """θ_0 … θ_K with the optimiser's states (the last alone unless ``keep``), and the losses."""
    points, losses = [(start, loop.start(start))], []
    eager = isinstance(loop.calculus, Eager)
    for _ in range(steps):
        with torch.no_grad() if eager else nullcontext():
            values, state, loss = loop.step(*points[-1], support, differentiable=False)
        points = [*points, (values, state)] if keep else [(values, state)]
        losses.append(loss)
    return points, losses


def _tensors(state: Any) -> Values:
    return [part for part in leaves(state) if isinstance(part, Tensor)]
