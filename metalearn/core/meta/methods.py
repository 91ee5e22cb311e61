"""The ways to the gradient of the query loss after adaptation, each written for one task.

With the backend `Eager` and leaves ``[T, ...]`` the same lines serve T tasks at once: losses are
``[T]``, and nothing mixes tasks.
Axes: K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metalearn.core.autodiff.backend import Values
from metalearn.core.autodiff.linear_solve import difference
from metalearn.core.meta.adaptation import InnerLoop
from metalearn.core.meta.adapted_task import AdaptedTask, TaskGradient, query_gradient, walk
from metalearn.core.meta.backward_walk import BackwardWalk
from metalearn.core.meta.implicit import implicit
from metalearn.core.meta.step_weights import weighted, weighted_steps
from metalearn.core.tree import flatten, leaves, tree_map, unflatten

__all__ = ["METHODS", "OF_THE_END"]


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
                values, state, loss = loop.step(values, state, loop.batch(support, k - 1))
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
    for k, (values, _, slope, loss) in enumerate(walk(loop, start, support, len(weights) - 1)):
        if loss is not None:
            losses.append(loss)
            slopes += [slope] if learns else []
        if k in counting:
            parts[k], term = query_gradient(loop, values, query, weights[k])
            terms.append(term)
    optimizer_grads = _rate_gradients(loop, start, slopes, parts) if learns else ()
    each = list(parts.values())
    grads = each[0] if len(each) == 1 else [_total(list(leaf)) for leaf in zip(*each)]
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
    way = BackwardWalk(loop, support, len(weights) - 1)
    losses: list[Tensor] = []
    last = counting[-1]
    recorded = last == way.steps and _numbers(query) <= _numbers(support)  # else memory grows
    values, state = way.forward(start, losses=losses, recorded=recorded)
    if last < way.steps:  # query losses of later steps have the weight 0
        values, state = way.kept[last]
        way.kept = {k: point for k, point in way.kept.items() if k < last}
    cotangent, term = query_gradient(loop, values, query, weights[last])
    way.begin(cotangent, state, at=last)
    terms = [term]
    while way.position:
        values, _ = way.back()
        if way.position in counting:
            part, term = query_gradient(loop, values, query, weights[way.position])
            way.add(part)
            terms.append(term)
    return TaskGradient(way.cotangent, way.learnt_grads(), _total(terms), losses, {})


def _numbers(batch: Any) -> int:
    return sum(value.numel() for value in leaves(batch) if isinstance(value, Tensor))


def reptile(task: AdaptedTask) -> TaskGradient:
    """θ_0 − θ_K: the way of the inner loop, turned round.

    No gradient of the query loss, which is computed at θ_K for the record. Source: Nichol, Achiam
    and Schulman, "On First-Order Meta-Learning Algorithms", 2018.
    """
    loop, start, support, query, weights, _ = task
    losses: list[Tensor] = []
    values = list(start)
    for values, _, _, loss in walk(loop, start, support, len(weights) - 1):  # noqa: B007
        losses += [] if loss is None else [loss]
    query_loss = loop.loss([v.detach() for v in values], query).detach()
    return TaskGradient(difference(start, values), (), query_loss, losses, {})


METHODS: dict[str, Callable[[AdaptedTask], TaskGradient]] = {
    "reverse": reverse,
    "mixed": mixed,
    "first_order": first_order,
    "implicit": implicit,
    "reptile": reptile,
}
OF_THE_END = ("implicit", "reptile")
"""To these, losses and step sizes on the way to θ_K are nothing that has a gradient."""


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


def _total(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
