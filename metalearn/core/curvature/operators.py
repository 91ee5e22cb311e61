"""Curvature matrices as functions of a parameter tree, summed over the batches of a data set.

Each gives A·v for a tree v like the parameters; A is symmetric, ``[P, P]``, and belongs to the mean
over all N samples of all batches (batches may differ in size). Nothing is kept between products.

Inside an outer vmap (over members, over tasks) each member differentiates its own loss twice. Where
a vmap stands between two derivatives, as in jvp(vmap(grad(loss))), torch's batch, layer and
instance norms are wrong by several per cent, without an error (torch 2.14, float64); here they are
taken in plain arithmetic where a loss takes gradients by itself or a transform stands around.

Axes: N samples, C outputs, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from metalearn.core.autodiff.adjoint_tests import is_concrete, random_like
from metalearn.core.autodiff.derivative_modes import AnyMode
from metalearn.core.autodiff.products import (
    SecondMode,
    check_mode,
    gauss_newton_product,
    hessian_product,
)
from metalearn.core.checks import check_pair
from metalearn.core.chunking import sample_count
from metalearn.core.curvature.fisher_problem import FisherProblem, OutputsFn
from metalearn.core.curvature.likelihood import NOT_GIVEN, AnyLikelihood, FisherKind, Likelihood
from metalearn.core.loss_checks import checked_to_reach, scalar_loss
from metalearn.core.tree import check_floating, flatten, scale, tree_map, unflatten
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params

__all__ = ["Operator", "fisher_operator", "ggn_operator", "hessian_operator"]

Operator = Callable[[Params], Params]
"""A·v of a tree v."""


@checked
def hessian_operator(
    loss_fn: LossFn,
    params: Params,
    batches: Sequence[Batch],
    *,
    mode: SecondMode = "auto",
) -> Operator:
    """V ↦ ∇²L·v, L = Σ_b (N_b/N)·loss_fn(params, batch b), the mean loss over all samples.

    Args:
        loss_fn: mean loss of a batch.
        params: any tree.
        batches: a list, of one batch or more; never the batch itself.
        mode: of `metalearn.core.hvp`; ``"forward_over_reverse"`` is tested here, once on every
            batch, not at every product.

    Raises:
        SettingError: ``batches`` is not a list of batches; a loss in which no parameter has a part;
            as `metalearn.core.hvp`.
    """
    check_mode("mode", mode, get_args(SecondMode))

    def product(vector: Params, batch: Batch, tested: bool) -> Params:
        loss = checked_to_reach(scalar_loss(lambda p: loss_fn(p, batch)))
        return hessian_product(loss, (params,), (vector,), mode, tested=tested)[0]

    return _summed(product, params, batches, mode == "forward_over_reverse")


@checked
def ggn_operator(
    outputs_fn: OutputsFn,
    output_loss: Callable[[Any, Any], Tensor],
    params: Params,
    batches: Sequence[Batch],
    *,
    mode: AnyMode = "auto",
) -> Operator:
    """V ↦ Jᵀ·∇²_f L·J·v, the generalised Gauss–Newton matrix of the mean loss over all samples.

    Args:
        outputs_fn: outputs f of parameters and inputs; here a batch is seen whole.
        output_loss: mean loss of outputs and targets, convex in the outputs.
        params: any tree.
        batches: a list of ``(inputs, targets)``.
        mode: of J·v, as in `metalearn.core.jvp`; ``"forward"`` is tested here, once on every batch,
            not at every product.

    Raises:
        SettingError: ``batches`` is not a list of batches; as `metalearn.core.ggn_vp`.

    Source: Schraudolph, "Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent",
    2002.
    """
    check_mode("mode", mode, get_args(AnyMode))

    def product(vector: Params, batch: Batch, tested: bool) -> Params:
        inputs, targets = check_pair(batch)
        return gauss_newton_product(
            lambda p: outputs_fn(p, inputs),
            lambda outputs: output_loss(outputs, targets),
            (params,),
            (vector,),
            mode,
            tested=tested,
        )[0]

    return _summed(product, params, batches, mode == "forward")


@checked
def fisher_operator(
    outputs_fn: OutputsFn,
    params: Params,
    batches: Sequence[Batch],
    *,
    likelihood: AnyLikelihood,
    kind: FisherKind | None = None,
    generator: torch.Generator | None = None,
    samples: int = NOT_GIVEN,
    variance: float = NOT_GIVEN,
    chunk_size: int | None = None,
    mode: AnyMode = "auto",
) -> Operator:
    """V ↦ F·v as `metalearn.core.fisher_vp`; Monte Carlo targets are drawn once, here.

    Args:
        outputs_fn: outputs ``[N, C]``; every sample is seen as a batch of one.
        params: any tree.
        batches: a list of ``(inputs, targets)``.
        likelihood: and the rest, as for `metalearn.core.fisher_diagonal`.
        kind: the same.
        generator: the same.
        samples: the same.
        variance: the same.
        chunk_size: samples of one pass; by default a batch.
        mode: of J·v, as in `metalearn.core.jvp`; ``"forward"`` is tested here, once.

    Raises:
        SettingError: ``batches`` is not a list of batches; see `metalearn.core.fisher_diagonal`.
    """
    _check_list(batches)
    check_mode("mode", mode, get_args(AnyMode))
    if chunk_size is not None:
        check_whole("chunk_size", chunk_size, 1)
    rule = Likelihood.of(likelihood, kind, samples, variance)
    problems = [FisherProblem.of(outputs_fn, params, b, rule, generator) for b in batches]
    shares = _shares([problem.inputs for problem in problems])
    if mode == "forward":
        for problem in problems:
            problem.check_forward(chunk_size)
    return lambda vector: _total(
        [
            scale(problem.product(vector, chunk_size, mode), s)
            for problem, s in zip(problems, shares)
        ]
    )


def _summed(
    product: Callable[[Params, Batch, bool], Params],
    params: Params,
    batches: Sequence[Batch],
    test: bool,
) -> Operator:
    """The sum over batches; where ``test``, every batch takes a product that is tested."""
    check_floating(params, "params")
    shares = _shares(batches)
    values, spec = flatten(params)
    if test and is_concrete(values):
        for batch in batches:
            product(unflatten(random_like(values), spec), batch, False)
    return lambda vector: _total(
        [scale(product(vector, b, test), s) for b, s in zip(batches, shares)]
    )


def _shares(batches: Sequence[Batch]) -> list[float]:
    """N_b / N of each batch."""
    _check_list(batches)
    sizes = [sample_count(batch) for batch in batches]
    return [size / sum(sizes) for size in sizes]


def _check_list(batches: object) -> None:
    if not isinstance(batches, list) or not batches:
        raise SettingError("batches", type(batches).__name__, "a list of batches is needed")


def _total(parts: list[Params]) -> Params:
    total = parts[0]
    for part in parts[1:]:
        total = tree_map(torch.add, total, part)
    return total
