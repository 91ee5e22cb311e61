"""The inner loop: parameters that follow a few steps of an inner optimiser on a support set.

Written for one task; `metalearn.core.meta_gradient` batches it over T tasks.
Axes: K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.core.autodiff.backend import Calculus, Functional
from metalearn.core.checks import check_samples, scalar_loss
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.tree import (
    check_floating,
    check_tensors,
    flatten,
    leaf_names,
    match_names,
    unflatten,
)
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params

__all__ = [
    "Adapted",
    "InnerLoop",
    "InnerStep",
    "adapt",
    "check_inner",
    "inner_loop",
    "inner_trajectory",
    "last_of",
    "trajectory",
]


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


@dataclass(frozen=True)
class InnerLoop:
    """The inner step (θ, s) → (θ', s') on lists of leaves, s the state of the optimiser."""

    loss: Callable[[list[Tensor], Batch], Tensor]
    """Loss of all leaves and a batch."""
    moving: Sequence[bool]
    """Which leaves adapt."""
    optimizer: InnerOptimizer
    calculus: Calculus

    def start(self, values: Sequence[Tensor]) -> Any:
        """State of the optimiser before the first step."""
        return self.optimizer.init(self.adapting(values))

    def step(
        self, values: Sequence[Tensor], state: Any, support: Batch, *, differentiable: bool = True
    ) -> tuple[list[Tensor], Any, Tensor]:
        """θ', s', and the support loss at θ."""
        part = self.adapting(values)
        grads, loss = self.calculus.gradient(
            lambda x: self.loss(self.merge(values, x), support), part, differentiable=differentiable
        )
        moved, state = self.optimizer.step(grads, state, part)
        return self.merge(values, moved), state, loss

    def adapting(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The leaves that adapt."""
        return [v for v, moves in zip(values, self.moving) if moves]

    def merge(self, values: Sequence[Tensor], part: Sequence[Tensor]) -> list[Tensor]:
        """All leaves, those that adapt taken from ``part``."""
        supply = iter(part)
        return [next(supply) if moves else v for v, moves in zip(values, self.moving)]


def inner_loop(
    loss_fn: LossFn,
    params: Params,
    *,
    optimizer: InnerOptimizer,
    frozen: str | Sequence[str] | None = None,
    calculus: Calculus | None = None,
) -> InnerLoop:
    """The inner step for a loss of trees like ``params``.

    Raises:
        SettingError: a pattern in ``frozen`` that matches nothing; step sizes named otherwise than
            the parameters that adapt.
    """
    _, spec = flatten(params)
    moving = [not fixed for fixed in match_names(params, frozen, "frozen")]
    if isinstance(optimizer.learnt, dict):
        names = [name for name, moves in zip(leaf_names(params), moving) if moves]
        if leaf_names(optimizer.learnt) != names:
            raise SettingError(
                "lr", leaf_names(optimizer.learnt), f"one for each of {names}, in that order"
            )
    return InnerLoop(
        lambda values, batch: loss_fn(unflatten(values, spec), batch),
        moving,
        optimizer,
        calculus or Functional(),
    )


@checked
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
            gradient of zero, but it must use one of those that adapt.
        support: one task's support set, without a task axis.
        optimizer: `sgd` or `adam` of `metalearn.core`, or any other pure pair.
        steps: K, at least 0.
        frozen: shell-style pattern, or several, over dotted parameter names; matching parameters
            stay as they are. Where all of them match, nothing is adapted.

    Returns:
        ``Adapted(params, losses)``, losses ``[K]``.

    Raises:
        SettingError: negative steps, a pattern that matches nothing, parameters that are not
            floating-point tensors, a support set without samples; a loss that is not a scalar or
            in which no parameter that adapts has a part.
    """
    check_inner(params, steps)
    if steps:
        check_samples(support, "support")
    return last_of(
        inner_trajectory(loss_fn, params, support, optimizer=optimizer, steps=steps, frozen=frozen)
    )


@checked
def inner_trajectory(
    loss_fn: LossFn,
    params: Params,
    support: Batch,
    *,
    optimizer: InnerOptimizer,
    steps: int,
    frozen: str | Sequence[str] | None = None,
    calculus: Calculus | None = None,
) -> Iterator[InnerStep]:
    """Yield θ_0 .. θ_K, each with the support loss of the step that led there.

    Arguments and errors are those of `adapt`. With a ``calculus`` gradients are taken by it and
    not differentiated in turn.
    """
    check_inner(params, steps)
    check_tensors(support, "support")
    if calculus is not None and not hasattr(calculus, "gradient"):
        raise SettingError("calculus", calculus, "an Eager or Functional, or None, is needed")
    return trajectory(
        scalar_loss(loss_fn), params, support, optimizer=optimizer, steps=steps, frozen=frozen,
        calculus=calculus,
    )  # fmt: skip


def trajectory(
    loss_fn: LossFn,
    params: Params,
    support: Batch,
    *,
    optimizer: InnerOptimizer,
    steps: int,
    frozen: str | Sequence[str] | None = None,
    calculus: Calculus | None = None,
) -> Iterator[InnerStep]:
    """As `inner_trajectory`, of arguments that are checked; losses may be ``[T]``, one a task."""
    loop = inner_loop(loss_fn, params, optimizer=optimizer, frozen=frozen, calculus=calculus)
    values, spec = flatten(params)
    state = loop.start(values)
    yield InnerStep(params, None)
    for _ in range(steps):
        values, state, loss = loop.step(values, state, support, differentiable=calculus is None)
        yield InnerStep(unflatten(values, spec), loss)


def check_inner(params: Params, steps: int) -> None:
    """Refuse what the inner loop cannot take: steps below 0, parameters that are not floats."""
    check_whole("steps", steps, 0)
    check_floating(params, "params")


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
