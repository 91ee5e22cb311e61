"""The inner loop of one task; `metalearn.core.meta_gradient` batches it over T tasks.

Axes: K inner steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.core.autodiff.backend import Backend
from metalearn.core.checks import check_samples
from metalearn.core.meta.adaptation import Adaptation, InnerStep
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.tree import check_floating, check_tensors, flatten
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params

__all__ = ["Adapted", "adapt", "inner_trajectory", "last_of"]


class Adapted(NamedTuple):
    """What adaptation gives."""

    params: Params
    """θ_K, a tree like the one that went in."""
    losses: Tensor
    """``[K]``: support loss before each step."""


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
    adaptation = Adaptation(loss_fn, optimizer, steps, frozen)
    check_floating(params, "params")
    if steps:
        check_samples(support, "support")
    check_tensors(support, "support")
    return last_of(adaptation.trajectory(params, support))


@checked
def inner_trajectory(
    loss_fn: LossFn,
    params: Params,
    support: Batch,
    *,
    optimizer: InnerOptimizer,
    steps: int,
    frozen: str | Sequence[str] | None = None,
    calculus: Backend | None = None,
) -> Iterator[InnerStep]:
    """Yield θ_0 .. θ_K, each with the support loss of the step that led there.

    Arguments and errors are those of `adapt`. With a ``calculus`` gradients are taken by it and
    not differentiated in turn.
    """
    adaptation = Adaptation(loss_fn, optimizer, steps, frozen)
    check_floating(params, "params")
    check_tensors(support, "support")
    if calculus is not None and not hasattr(calculus, "gradient"):
        raise SettingError("calculus", calculus, "an Eager or Functional, or None, is needed")
    return adaptation.trajectory(params, support, backend=calculus)


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
