"""The four ways to the gradient of the query loss after adaptation, each written for one task.

With the backend `Eager` and leaves ``[T, ...]`` the same lines serve T tasks at once: losses are
``[T]``, and nothing mixes tasks.
Axes: K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from metalearn.core.meta.step_weights import Weights, weighted, weighted_steps
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
    weights: Weights
    """Of the query losses at θ_0 … θ_K."""
    implicit: Implicit


def reverse(task: AdaptedTask) -> TaskGradient:
    """Through the unrolled loop: exact; memory grows with K."""
    given, start, support, query, weights, _ = task
    learnt, spec = flatten(given.optimizer.learnt)
    losses: list[Tensor] = []
    counting = weighted_steps(weights)

    def objective(inputs: Values) -> Tensor:
        values = inputs[: len(start)]
        loop = given.with_learnt(unflatten(inputs[len(start) :], spec))
        state, terms = loop.start(values), []
        for k, weight in enumerate(weights):
            if k:
                values, state, loss = loop.step(values, state, support)
                losses.append(loss)
            if k in counting:
                terms.append(weighted(weight, loop.loss(values, query)))
        return _total(terms)

    grads, value = given.backend.gradient(objective, [*start, *learnt], differentiable=False)
    optimizer_grads = unflatten(grads[len(start) :], spec)
    return TaskGradient(grads[: len(start)], optimizer_grads, value, losses, {})


def first_order(task: AdaptedTask) -> TaskGradient:
    """The gradients at θ_k as if they were those at θ_0.

    What the inner optimiser learns has the gradient of the loop whose inner gradients are
    constants: ∂U/∂rate stays, ∂g/∂rate does not. For that K inner gradients are kept.
    """
    loop, start, support, query, weights, _ = task
    learns = bool(leaves(loop.optimizer.learnt))
    losses: list[Tensor] = []
    slopes: list[Values] = []
    parts: dict[int, Values] = {}
    terms: list[Tensor] = []
    counting = weighted_steps(weights)
    for k, (values, _, slope, loss) in enumerate(_walk(loop, start, support, len(weights) - 1)):
        if loss is not None:
            losses.append(loss)
            slopes += [slope] if learns else []
        if k in counting:
            parts[k], term = _query_gradient(loop, values, query, weights[k])
            terms.append(term)
    optimizer_grads = _rate_gradients(loop, start, slopes, parts) if learns else ()
    grads = [_total(list(each)) for each in zip(*parts.values())]
    return TaskGradient(grads, optimizer_grads, _total(terms), losses, {})


def mixed(task: AdaptedTask) -> TaskGradient:
    """Keep θ_0 … θ_K (and the optimiser's states), walk back one recomputed step at a time.

    Exact. For a step θ' = θ + U(g(θ)) and a cotangent v the way back is v + H(θ)·(∂U/∂g)ᵀ·v; the
    Hessian product comes from differentiating the recomputed step in reverse, which on a CPU is
    faster than forward over reverse. Source: Kemaev et al., "Scalable Meta-Learning via Mixed-Mode
    Differentiation", ICML 2025.
    """
    loop, start, support, query, weights, _ = task
    counting = weighted_steps(weights)
    points, losses = [], []
    for values, state, _, loss in _walk(loop, start, support, len(weights) - 1):
        points.append((values, state))
        losses += [] if loss is None else [loss]
    del points[counting[-1] + 1 :]
    values, state = points.pop()
    cotangent, term = _query_gradient(loop, values, query, weights[counting[-1]])
    terms = [term]
    learnt, spec = flatten(loop.optimizer.learnt)
    learnt_grads = [torch.zeros_like(v) for v in learnt]
    state_cotangent = [torch.zeros_like(part) for part in _tensors(state)]
    while points:
        values, state = points.pop()
        tensors = _tensors(state)
        pull = loop.backend.pull(_recomputed(task, state, spec), [*values, *tensors, *learnt])
        pulled = pull([*cotangent, *state_cotangent])
        cotangent, rest = pulled[: len(start)], pulled[len(start) :]
        state_cotangent = rest[: len(tensors)]
        learnt_grads = [a + b for a, b in zip(learnt_grads, rest[len(tensors) :])]
        if len(points) in counting:
            part, term = _query_gradient(loop, values, query, weights[len(points)])
            cotangent = [a + b for a, b in zip(cotangent, part)]
            terms.append(term)
    return TaskGradient(cotangent, unflatten(learnt_grads, spec), _total(terms), losses, {})


def implicit(task: AdaptedTask) -> TaskGradient:
    """Through the minimum φ of L(φ) + λ/2·‖φ − θ‖², not through the way there.

    The gradient of θ is x with (I + H(φ)/λ)·x = ∇L_query(φ), by conjugate gradients; exact as far
    as φ is a minimum and x solves the system. Frozen leaves ψ have ∇_ψ L_query − (∂²L/∂ψ∂φ)·x/λ.
    Diagnostics, one number a task: ``cg_residual`` is ‖(I + H/λ)·x − b‖ / ‖b‖, ``stationarity`` is
    ‖∇L(φ) + λ·(φ − θ)‖ divided by the same at θ. Source: Rajeswaran et al., "Meta-Learning with
    Implicit Gradients", NeurIPS 2019.
    """
    loop, start, support, query, weights, settings = task
    strength = settings.regularization
    anchor = loop.adapting(start)

    def regularized(values: Values, batch: Batch) -> Tensor:
        loss, moved = loop.loss(values, batch), difference(loop.adapting(values), anchor)
        return loss + 0.5 * strength * inner_product(moved, moved, loss)

    losses: list[Tensor] = []
    values = start
    descent = replace(loop, loss=regularized)
    for values, _, _, loss in _walk(descent, start, support, len(weights) - 1):  # noqa: B007
        losses += [] if loss is None else [loss]
    end = [v.detach() for v in values]
    query_grads, query_loss = _query_gradient(loop, end, query, 1.0)

    def slope(values: Values, differentiable: bool = True) -> Values:
        return loop.slope(values, support, differentiable=differentiable)[0]

    pull = loop.backend.pull(slope, end)

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
    return TaskGradient(loop.merge(grads, solution), (), query_loss, losses, diagnostics)


METHODS: dict[str, Callable[[AdaptedTask], TaskGradient]] = {
    "reverse": reverse,
    "mixed": mixed,
    "first_order": first_order,
    "implicit": implicit,
}


class _Point(NamedTuple):
    """A point of the inner loop on leaves."""

    values: Values
    state: Any
    """Of the optimiser."""
    slope: Values
    """Inner gradients that led here; none at the start."""
    loss: Tensor | None
    """Support loss before the step that led here; None at the start."""


def _walk(loop: InnerLoop, start: Values, support: Batch, steps: int) -> Iterator[_Point]:
    """θ_0 … θ_K, nothing of which is differentiable."""
    values, state = start, loop.start(start)
    eager = isinstance(loop.backend, Eager)
    yield _Point(values, state, [], None)
    for _ in range(steps):
        with torch.no_grad() if eager else nullcontext():
            slope, loss = loop.slope(values, support, differentiable=False)
            values, state = loop.advance(values, state, slope)
        yield _Point(values, state, slope, loss)


def _query_gradient(
    loop: InnerLoop, values: Values, query: Batch, weight: float | Tensor
) -> tuple[Values, Tensor]:
    """Gradient and value of the query loss, times its weight."""
    grads, value = loop.backend.gradient(
        lambda x: loop.loss(x, query), values, differentiable=False
    )
    return [weighted(weight, g) for g in grads], weighted(weight, value)


def _rate_gradients(
    loop: InnerLoop, start: Values, slopes: list[Values], parts: dict[int, Values]
) -> Any:
    """Of what the optimiser learns, inner gradients and the query's at θ_k being constants."""
    learnt, spec = flatten(loop.optimizer.learnt)
    steps = [k for k in parts if k]
    if not steps or not any(loop.moving):
        return tree_map(torch.zeros_like, loop.optimizer.learnt)

    def points(learnt: Values) -> Values:
        moved, values, found = loop.with_learnt(unflatten(learnt, spec)), start, []
        state = moved.start(start)
        for k, slope in enumerate(slopes, start=1):
            values, state = moved.advance(values, state, slope)
            found += moved.adapting(values) if k in steps else []
        return found

    pull = loop.backend.pull(points, learnt)
    return unflatten(pull([g for k in steps for g in loop.adapting(parts[k])]), spec)


def _recomputed(task: AdaptedTask, state: Any, spec: Any) -> Callable[[Values], Values]:
    """The inner step as a function of leaves, tensors of the state and of what is learnt."""
    loop, start, support, *_ = task

    def step(inputs: Values) -> Values:
        supply = iter(inputs)
        values = [next(supply) for _ in start]
        before = tree_map(lambda x: next(supply) if isinstance(x, Tensor) else x, state)
        moved = loop.with_learnt(unflatten(list(supply), spec))
        values, after, _ = moved.step(values, before, support)
        return [*values, *_tensors(after)]

    return step


def _total(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _tensors(state: Any) -> Values:
    return [part for part in leaves(state) if isinstance(part, Tensor)]
