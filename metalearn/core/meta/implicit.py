"""The implicit method: the gradient at the minimum of a regularised inner loss.

With the backend `Eager` and leaves ``[T, ...]`` the same lines serve T tasks at once: losses are
``[T]``, and nothing mixes tasks.
Axes: K inner steps.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from metalearn.core.autodiff.backend import Values
from metalearn.core.autodiff.linear_solve import (
    conjugate_gradients,
    difference,
    euclidean_norm,
    inner_product,
)
from metalearn.core.meta.adapted_task import AdaptedTask, TaskGradient, query_gradient, walk
from metalearn.types import Batch

__all__ = ["implicit"]


def implicit(task: AdaptedTask) -> TaskGradient:
    """Through the minimum φ of L(φ) + λ/2·‖φ − θ‖², not through the way there.

    The gradient of θ is x with (I + H(φ)/λ)·x = ∇L_query(φ), by conjugate gradients; exact as far
    as φ is a minimum and x solves the system. Frozen leaves ψ have ∇_ψ L_query − (∂²L/∂ψ∂φ)·x/λ.
    With a damping δ both have λ + δ in the place of λ: what is solved is a definite system where
    φ is no minimum, as after few steps on a network, and the gradient one of a stronger pull, as
    the paper's code has it (δ = 10). Diagnostics, one number a task: ``cg_residual`` is
    ‖(I + H/(λ + δ))·x − b‖ / ‖b‖, ``stationarity`` is ‖∇L(φ) + λ·(φ − θ)‖ divided by the same at θ.
    Source: Rajeswaran et al., "Meta-Learning with Implicit Gradients", NeurIPS 2019.
    """
    loop, start, support, query, weights, settings = task
    strength = settings.regularization
    damped = strength + settings.damping
    anchor = loop.adapting(start)

    def regularized(values: Values, batch: Batch) -> Tensor:
        loss, moved = loop.loss(values, batch), difference(loop.adapting(values), anchor)
        return loss + 0.5 * strength * inner_product(moved, moved, loss)

    losses: list[Tensor] = []
    values = start
    descent = replace(loop, loss=regularized)
    for values, _, _, loss in walk(descent, start, support, len(weights) - 1):  # noqa: B007
        losses += [] if loss is None else [loss]
    end = [v.detach() for v in values]
    query_grads, query_loss = query_gradient(loop, end, query, 1.0)

    def slope(values: Values, differentiable: bool = True) -> Values:
        return loop.slope(values, support, differentiable=differentiable)[0]

    pull = loop.backend.pull(slope, end)

    def product(x: Values) -> Values:
        curved = loop.adapting(pull(x))
        return [a + h / damped for a, h in zip(x, curved)]

    target = loop.adapting(query_grads)
    solution, residual = conjugate_gradients(product, target, query_loss, settings.iterations)
    through = pull(solution)
    grads = [g - h / damped for g, h in zip(query_grads, through)]
    moved = difference(loop.adapting(end), anchor)
    force = [s + strength * d for s, d in zip(slope(end, False), moved)]
    initial = euclidean_norm(slope(start, False), query_loss)
    tiny = torch.finfo(query_loss.dtype).tiny
    diagnostics = {
        "cg_residual": residual,
        "stationarity": euclidean_norm(force, query_loss) / initial.clamp_min(tiny),
    }
    return TaskGradient(loop.merge(grads, solution), (), query_loss, losses, diagnostics)
