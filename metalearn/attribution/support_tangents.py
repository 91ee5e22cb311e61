"""How adapted parameters move with a weight on each support example, step by step.

The forward way to ∂ℓ_q/∂w_s: one tangent for each example goes along with the inner loop, where
the backward way takes one cotangent for each query through the graph of all steps. A tangent (δ, ε)
of parameters and weights changes the inner gradient by ∇_θ(⟨∇_θ L, δ⟩ + ⟨∇_w L, ε⟩), so that
networks are differentiated in reverse mode alone; forward mode is of the optimiser's arithmetic.
Axes: S support examples, R losses to be explained, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metalearn.core.autodiff.backend import Functional, Values
from metalearn.core.meta.adaptation import InnerLoop
from metalearn.core.tree import flatten, tree_map, unflatten
from metalearn.types import Batch

__all__ = ["forward_derivatives"]


def forward_derivatives(
    loop: InnerLoop,
    losses: Callable[[Values], Tensor],
    start: Values,
    support: Batch,
    weights: Tensor,
    steps: int,
) -> Tensor:
    """∂ℓ_r(θ_K)/∂w_s ``[R, S]`` of one task.

    Args:
        loop: whose loss takes a pair of the support set and of weights ``[S]``.
        losses: ``[R]`` of all leaves.
        start: θ_0.
        support: of the task.
        weights: ``[S]``.
        steps: K, at least 1.
    """
    directions = torch.eye(len(weights), dtype=weights.dtype, device=weights.device)
    values, state = start, loop.start(start)
    moved = [_zeros(directions, v) for v in loop.adapting(values)]
    turned = [_zeros(directions, v) for v in _numbers(state)]
    for k in range(steps):
        batch = _of_step(loop, support, k)
        slope, _ = loop.slope(values, batch(weights), differentiable=False)

        def along(
            moved: Values, turned: Values, direction: Tensor, *,
            values: Values = values, state: Any = state, slope: Values = slope, batch: Any = batch,
        ) -> tuple[Values, Values]:  # fmt: skip
            change = _slope_tangent(loop, values, batch, weights, [*moved, direction])
            return _advance_tangent(loop, values, state, slope, (moved, turned, change))

        moved, turned = _for_each(loop, along, moved, turned, directions)
        values, state = loop.advance(values, state, slope)
        values, state = tree_map(_detached, values), tree_map(_detached, state)
    rows: Tensor = _for_each(loop, lambda moved: _loss_tangent(loop, losses, values, moved), moved)
    return rows.mT


def _of_step(loop: InnerLoop, support: Batch, step: int) -> Callable[[Tensor], Batch]:
    """What a step sees of the support set, as a function of weights."""
    return lambda weights: loop.batch((support, weights), step)


def _slope_tangent(
    loop: InnerLoop,
    values: Values,
    batch: Callable[[Tensor], Batch],
    weights: Tensor,
    tangents: Values,
) -> Values:
    """How the inner gradient changes along tangents of the leaves that adapt and of weights."""

    def directional(part: Values) -> Tensor:
        def loss(inputs: Values) -> Tensor:
            *inside, given = inputs
            return loop.loss(loop.merge(values, inside), batch(given))

        slopes, _ = loop.backend.gradient(loss, [*part, weights], differentiable=True)
        return _product(slopes, tangents)

    change, _ = loop.backend.gradient(directional, loop.adapting(values), differentiable=False)
    return change


def _advance_tangent(
    loop: InnerLoop, values: Values, state: Any, slope: Values, tangents: tuple[Values, ...]
) -> tuple[Values, Values]:
    """How θ' and the numbers in s' change with those of θ, s and the inner gradient."""

    def advance(part: Values, numbers: Values, slope: Values) -> tuple[Values, Values]:
        moved, after = loop.advance(loop.merge(values, part), _with(state, numbers), slope)
        return loop.adapting(moved), _numbers(after)

    primals = (loop.adapting(values), _numbers(state), slope)
    found: Any = torch.func.jvp(advance, primals, tangents)
    changes: tuple[Values, Values] = found[1]
    return changes


def _loss_tangent(
    loop: InnerLoop, losses: Callable[[Values], Tensor], values: Values, tangents: Values
) -> Tensor:
    """How losses ``[R]`` change along a tangent: ⟨∇_θ ⟨u, ℓ(θ)⟩, δ⟩, differentiated by u."""
    with torch.no_grad():
        like = losses(values)

    def product(cotangents: Values) -> Tensor:
        (u,) = cotangents
        slopes, _ = loop.backend.gradient(
            lambda part: torch.sum(u * losses(loop.merge(values, part))),
            loop.adapting(values),
            differentiable=True,
        )
        return _product(slopes, tangents)

    (found,), _ = loop.backend.gradient(product, [torch.ones_like(like)], differentiable=False)
    return found


def _for_each(loop: InnerLoop, function: Callable[..., Any], *rows: Any) -> Any:
    """The function of each row, by vmap where the backend may be inside of it."""
    if isinstance(loop.backend, Functional):
        return torch.vmap(function)(*rows)
    count = len(flatten(rows)[0][0])
    found = [function(*tree_map(lambda x, s=s: x[s], rows)) for s in range(count)]
    return tree_map(lambda *each: torch.stack([_detached(x) for x in each]), found[0], *found[1:])


def _product(ones: Values, others: Values) -> Tensor:
    return torch.stack([(a * b).sum().to(ones[0].dtype) for a, b in zip(ones, others)]).sum()


def _numbers(state: Any) -> Values:
    """The leaves of an optimiser's state that have derivatives."""
    return [leaf for leaf in flatten(state)[0] if _is_number(leaf)]


def _with(state: Any, numbers: Values) -> Any:
    """The state with other numbers."""
    found, spec = flatten(state)
    supply = iter(numbers)
    return unflatten([next(supply) if _is_number(leaf) else leaf for leaf in found], spec)


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _zeros(directions: Tensor, like: Tensor) -> Tensor:
    return like.new_zeros(len(directions), *like.shape)


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf
