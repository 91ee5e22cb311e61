"""Influence functions: what the weight of an example does to the optimum, and so to a loss there.

With weights w on the examples' losses, θ(w) = argmin (1/N)·Σ w_i·ℓ_i(θ) + λ/2·‖θ‖². There

    −dℓ_r/dw_i = (1/N) · ∇ℓ_rᵀ · (H + λI)⁻¹ · ∇ℓ_i,

with H the Hessian of (1/N)·Σ w_i·ℓ_i; w is 1 unless the network was trained with other weights. It
is positive where the example lowers the loss of the target: leaving it out (w_i from 1 to 0) raises
that loss by about the score, in units of the loss. It is exact to first order at an optimum that is
the only one; elsewhere it describes a few steps on from where the parameters are, and only ranks.

Axes: R targets, N examples, P parameters.
Sources: Koh and Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017;
Grosse et al., "Studying Large Language Model Generalization with Influence Functions", 2023
(eigenvalue-corrected Kronecker factors); Bae et al., "If Influence Functions are the Answer, Then
What is the Question?", NeurIPS 2022 (damping, networks that are not at an optimum).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from metalearn.attribution.curvature_choice import Curvature
from metalearn.attribution.gradient_passes import (
    GradientPasses,
    check_batches,
    chosen_parameters,
    detached,
)
from metalearn.core.autodiff.adjoint_tests import is_concrete
from metalearn.core.autodiff.linear_solve import conjugate_gradients
from metalearn.core.checks import check_number, check_weights
from metalearn.core.chunking import ChunkSize, chunks, resolve_chunk, sample_count
from metalearn.core.curvature.operators import Operator
from metalearn.core.curvature.symmetry import check_symmetric
from metalearn.core.precision import in_float32
from metalearn.core.samples.gradients import SampleMethod
from metalearn.core.tree import add_scaled, flatten, leaves, tree_map, unflatten
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params

__all__ = ["Influence", "conjugate_gradient_influence"]


class Influence(NamedTuple):
    """Scores, and how well the equations behind them were solved."""

    scores: Tensor
    """``[R, N]``."""
    residual: Tensor
    """``[R]``, ‖(H + λI)·x_r − ∇ℓ_r‖ / ‖∇ℓ_r‖."""
    converged: Tensor
    """``[R]``, whether that is as small as was asked for; scores of others are not to be used.
    More iterations help, or more damping, without which a Hessian can have negative eigenvalues."""

    @property
    def warning(self) -> str:
        """Of which targets scores are not to be used; empty where all can be."""
        lost = int((~self.converged).sum())
        if not lost:
            return ""
        worst = float(self.residual[~self.converged].max())
        return (
            f"the equations of {lost} of {len(self.converged)} targets were not solved (residual "
            f"{worst:.2g}), their scores are not to be used: more damping is needed"
        )


@checked
def conjugate_gradient_influence(
    loss_fn: LossFn,
    params: Params,
    targets: Batch,
    examples: Batch,
    *,
    damping: float,
    weights: Tensor | None = None,
    curvature: Literal["hessian"] | Curvature | Operator = "hessian",
    iterations: int = 100,
    tolerance: float = 1e-3,
    targets_at_once: int | None = None,
    parameters: str | Sequence[str] | None = None,
    chunk_size: ChunkSize = "auto",
    memory: int | str | None = None,
    method: SampleMethod = "layers",
) -> Influence:
    """Scores ``[R, N]`` with (H + λI)⁻¹·∇ℓ_r by conjugate gradients, of several targets at once.

    Args:
        loss_fn: as for `tracin_scores`, as are ``targets`` and ``examples``; the examples are all
            N that the mean loss was trained on.
        params: θ, where the training ended.
        targets: see there.
        examples: see there.
        damping: λ, at least 0; a weight decay that was trained with is a part of it.
        weights: w ``[N]`` of the examples in the training, by default 1 for each, with which the
            Hessian or GGN is that of the weighted loss.
        curvature: ``"hessian"``, a `Curvature` of another kind, or products with a matrix of one's
            own, of trees like the chosen parameters.
        iterations: of conjugate gradients at most; each is a product with H over all examples.
        tolerance: residual at which they end.
        targets_at_once: R by default; four vectors of P numbers are held for each.
        parameters: patterns of those that are taken to move, such as the last layer's ``"head.*"``.
        chunk_size: samples of one pass, as for `tracin_scores`, as are ``memory`` and ``method``.
        memory: see there.
        method: see there.

    Raises:
        SettingError: a number out of range; an operator that is not symmetric or not finite; what
            `metalearn.core.per_sample_gradients` refuses.
    """
    check_number("damping", damping, least=0)
    check_number("tolerance", tolerance, above=0)
    check_whole("iterations", iterations, 1)
    many, count = check_batches(targets, examples)
    if targets_at_once is not None:
        check_whole("targets_at_once", targets_at_once, 1)
    passes = GradientPasses.of(loss_fn, params, parameters, chunk_size, memory, method)
    _, whole = chosen_parameters(params, parameters)
    operator = _operator(curvature, passes, whole, examples, weights, targets_at_once or many)
    check_symmetric(operator, passes.params, "curvature")
    solve = partial(_solve, operator, passes.params, damping, iterations, tolerance)
    parts = []
    for some in chunks(targets, targets_at_once):
        solutions, residual = solve(passes.whole(some))
        parts.append((passes.products(solutions, examples) / count, residual))
    scores, residuals = (torch.cat(column) for column in zip(*parts))
    return Influence(scores, residuals, residuals <= tolerance)


def _operator(
    curvature: Any,
    passes: GradientPasses,
    whole: Callable[[Params], Params],
    examples: Batch,
    weights: Tensor | None,
    many: int,
) -> Operator:
    """Products with the matrix that was asked for, for ``many`` vectors at once."""
    choice = Curvature("hessian") if curvature == "hessian" else curvature
    if not isinstance(choice, Curvature):
        if not callable(choice):
            needed = "'hessian' is needed, a Curvature of another kind, or products with a matrix"
            raise SettingError("curvature", choice, needed)
        if weights is not None:
            accepted = "None is needed where curvature is a matrix of one's own: it has them in it"
            raise SettingError("weights", list(weights.shape), accepted)
        given: Operator = choice
        return given
    weighted = weights is not None
    if weights is not None:
        check_weights(weights, sample_count(examples))
    batch = detached((examples, weights) if weighted else examples)
    part, loss_fn = passes.params, passes.loss_fn
    vectors = tree_map(lambda p: p.expand(many, *p.shape), part)
    tried = Curvature("hessian")  # as dear as the others, or dearer

    def product(some: Batch) -> Params:
        return vmap(tried.operator(loss_fn, part, whole, [some], weighted=weighted))(vectors)

    size = resolve_chunk(product, batch, passes.chunk_size, passes.memory)
    return choice.operator(loss_fn, part, whole, list(chunks(batch, size)), weighted=weighted)


def _solve(
    operator: Operator,
    like: Params,
    damping: float,
    iterations: int,
    tolerance: float,
    gradients: Params,
) -> tuple[Params, Tensor]:
    """(H + λI)⁻¹·∇ℓ_r, leaves ``[R, ...]``, and residuals ``[R]``."""
    times, _ = in_float32(operator, like)
    values, spec = flatten(gradients)

    def product(vectors: list[Tensor]) -> list[Tensor]:
        tree = unflatten(vectors, spec)
        return leaves(add_scaled(vmap(times)(tree), tree, damping))

    # The residual that iterations know of is rounded otherwise than that of the answer.
    end = tolerance / 2 if is_concrete(values) else None
    kinds = [v.new_zeros(len(v)) for v in values]
    like_products = max(kinds, key=lambda zeros: torch.finfo(zeros.dtype).bits)
    found, residual = conjugate_gradients(product, values, like_products, iterations, tolerance=end)
    return unflatten(found, spec), residual
