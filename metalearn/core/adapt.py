"""The inner loop: parameters that follow a few steps of an inner optimiser on a support set.

Written for one task; `metalearn.core.meta_gradient` batches it over T tasks.
Axes: K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.core.inner import InnerOptimizer
from metalearn.core.tree import flatten, leaf_names, match_names, unflatten
from metalearn.errors import SettingError, check_whole
from metalearn.types import Batch, LossFn, Params

__all__ = [
    "Adapted",
    "GradAndValue",
    "InnerStep",
    "adapt",
    "check_inner",
    "eager_grad_and_value",
    "inner_trajectory",
    "last_of",
]

GradAndValue = Callable[[Callable[[Any], Tensor], Any], tuple[Any, Tensor]]
"""``(function, leaves) -> (gradients, value)``: how a gradient is taken."""


class Adapted(NamedTuple):
    """What adaptation gives."""

    params: Params
    """θ_K, a tree like the one that went in."""
    losses: Tensor
    """``[K]``: support loss before each step."""


class InnerStep(NamedTuple):
    """A point of the inner loop."""

    params: Params
    """θ_k."""
    loss: Tensor | None
    """Support loss at θ_{k−1}, whose gradient led here; None at the start."""


def adapt(
    loss_fn: LossFn,
    params: Params,
    support: Batch,
    *,
    optimizer: InnerOptimizer,
    steps: int,
    frozen: str | Sequence[str] | None = None,
) -> Adapted:
    """Take ``steps`` inner steps on one task's support set: θ_{k+1} = θ_k + U(∇L(θ_k)).

    Pure and differentiable: call it inside ``vmap``, ``grad``, or ordinary autograd.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch, a scalar.
        params: any pytree of floating-point tensors; a parameter that the loss does not use has a
            gradient of zero.
        support: one task's support set, without a task axis.
        optimizer: `sgd` or `adam` of `metalearn.core`, or any other pure pair.
        steps: K, at least 0.
        frozen: shell-style pattern, or several, over dotted parameter names; matching parameters
            stay as they are. Where all of them match, nothing is adapted.

    Returns:
        ``Adapted(params, losses)``, losses ``[K]``.

    Raises:
        SettingError: negative steps, a pattern that matches nothing, parameters that are not
            floating-point tensors.
    """
    return last_of(
        inner_trajectory(loss_fn, params, support, optimizer=optimizer, steps=steps, frozen=frozen)
    )


def inner_trajectory(
    loss_fn: LossFn,
    params: Params,
    support: Batch,
    *,
    optimizer: InnerOptimizer,
    steps: int,
    frozen: str | Sequence[str] | None = None,
    grad_and_value: GradAndValue | None = None,
) -> Iterator[InnerStep]:
    """Yield θ_0 .. θ_K, each with the support loss of the step that led there.

    Arguments and errors are those of `adapt`. ``grad_and_value(function, leaves)`` replaces
    ``torch.func.grad_and_value`` where it is given.
    """
    check_inner(params, steps)
    take = grad_and_value or (lambda f, x: torch.func.grad_and_value(f)(x))
    values, spec = flatten(params)
    moving = [not fixed for fixed in match_names(params, frozen, "frozen")]

    def merge(part: Sequence[Tensor]) -> Params:
        supply = iter(part)
        return unflatten([next(supply) if m else v for m, v in zip(moving, values)], spec)

    current = [v for m, v in zip(moving, values) if m]
    state = optimizer.init(current)
    yield InnerStep(params, None)
    for _ in range(steps):
        grads, loss = take(lambda part: loss_fn(merge(part), support), current)
        updates, state = optimizer.update(grads, state, current)
        current = [p + u for p, u in zip(current, updates)]
        yield InnerStep(merge(current), loss)


def eager_grad_and_value(*, create_graph: bool) -> GradAndValue:
    """Gradients by ordinary autograd, for functions that torch.func cannot transform.

    With ``create_graph`` the gradients can be differentiated in turn; without it every step
    starts from fresh leaves. Inputs that the function does not use have gradients of zero.
    """

    def take(function: Callable[[Any], Tensor], inputs: Sequence[Tensor]) -> tuple[Any, Tensor]:
        if not inputs:
            return [], function(inputs).detach()
        with torch.enable_grad():
            if not create_graph:
                inputs = [v.detach() for v in inputs]
            inputs = [v if v.requires_grad else v.detach().requires_grad_() for v in inputs]
            value = function(inputs)
            if not value.requires_grad:
                return [torch.zeros_like(v) for v in inputs], value.detach()
            found = torch.autograd.grad(value, inputs, create_graph=create_graph, allow_unused=True)
        grads = [torch.zeros_like(v) if g is None else g for g, v in zip(found, inputs)]
        return grads, value.detach()

    return take


def check_inner(params: Params, steps: int) -> None:
    """Refuse what the inner loop cannot take: steps below 0, parameters that are not floats."""
    check_whole("steps", steps, 0)
    values, _ = flatten(params)
    if not values:
        raise SettingError("params", params, "a tree with at least one tensor is needed")
    for name, value in zip(leaf_names(params), values):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise SettingError(f"params[{name}]", got, "a floating-point tensor is needed")


def last_of(trajectory: Iterable[InnerStep]) -> Adapted:
    """Where a trajectory ends, and the losses on the way."""
    losses: list[Tensor] = []
    params: Params = None
    for point in trajectory:
        params = point.params
        if point.loss is not None:
            losses.append(point.loss)
    leaf = flatten(params)[0][0]
    return Adapted(params, torch.stack(losses) if losses else leaf.new_zeros(0))
