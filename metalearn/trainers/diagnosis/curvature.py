"""Fisher matrix, eigenvalues, spectral density and traces of trained models, by an outer vmap.

Axes: G models (members, tasks), N samples of each, K Lanczos iterations, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metalearn.core import (
    effective_rank,
    fisher_diagonal,
    ggn_operator,
    hessian_operator,
    spectral_density,
    top_eigenvalues,
    trace_estimate,
)
from metalearn.core.curvature.fisher_problem import FisherProblem
from metalearn.core.curvature.likelihood import FisherKind, Likelihood
from metalearn.core.curvature.spectral_density import broadened
from metalearn.core.tree import leaves, tree_map
from metalearn.trainers.diagnosis.finding import Curvature, Finding, criterion, each, loss_of
from metalearn.trainers.diagnostics import Predictive
from metalearn.trainers.diagnostics.fisher_trace import fisher_traces
from metalearn.trainers.diagnostics.moments import by_layer
from metalearn.types import Batch, Params

__all__ = ["density", "eigenvalues", "fisher", "traces"]

_RANK_ROWS = 512  # gradients of which an effective rank is taken


def fisher(model: Predictive, curvature: Curvature) -> Finding:
    """Trace, diagonal by layer and effective rank, exact and empirical.

    The rank is of as many samples as have 512 gradients.
    """
    finding = Finding()
    kinds: tuple[FisherKind, ...] = ("exact", "empirical")
    for kind in kinds:
        finding.values[f"trace_{kind}"] = fisher_traces(model, kind)
        rule = Likelihood(model.likelihood, kind, variance=model.variance)

        def diagonal(p: Params, e: Any, b: Batch, kind: FisherKind = kind) -> Params:
            return fisher_diagonal(
                model.outputs_fn(e),
                p,
                b,
                likelihood=model.likelihood,
                kind=kind,
                variance=model.variance,
                chunk_size=8,
            )

        def rank(p: Params, e: Any, b: Batch, rule: Likelihood = rule) -> Tensor:
            outputs = model.outputs_fn(e)(p, tree_map(lambda x: x[:1], b[0])).shape[-1]
            size = max(1, _RANK_ROWS // rule.columns(outputs))
            few = tree_map(lambda x: x[:size], b)
            problem = FisherProblem.of(model.outputs_fn(e), p, few, rule, None)
            return effective_rank(problem.mean(_gram, len(leaves(few)[0])))

        sums = tree_map(lambda d: d.flatten(1).sum(1).mean(), each(diagonal, model, curvature))
        finding.layers[f"diagonal_{kind}"] = {k: float(v) for k, v in by_layer(sums).items()}
        finding.values[f"effective_rank_{kind}"] = each(rank, model, curvature)
    return finding


def _gram(grads: Params) -> Tensor:
    """Products of all gradients ``[n, R, ...]``: has the eigenvalues of N·F beside zeros."""
    rows = torch.cat([g.reshape(g.shape[0] * g.shape[1], -1) for g in leaves(grads)], 1)
    return rows @ rows.mT


def eigenvalues(model: Predictive, curvature: Curvature) -> Finding:
    """The largest of Hessian and GGN; the largest residual tells how far they may be off."""
    finding = Finding()
    for name, operator in _OPERATORS.items():

        def top(p: Params, e: Any, b: Batch, operator: Any = operator) -> tuple[Tensor, Tensor]:
            size = sum(leaf.numel() for leaf in leaves(p))
            iterations = min(curvature.iterations, size)
            found = top_eigenvalues(
                operator(model, p, e, b),
                p,
                count=min(curvature.eigenvalues, iterations),
                iterations=iterations,
                generator=curvature.generator(),
            )
            return found.values, found.residuals

        values, residuals = each(top, model, curvature)
        for place in range(values.shape[1]):
            finding.values[f"{name}_{place + 1}"] = values[:, place]
        finding.values[f"{name}_largest_residual"] = residuals.amax(1)
    return finding


def density(model: Predictive, curvature: Curvature) -> Finding:
    """Of the Hessian, the mean over models."""

    def of(p: Params, e: Any, b: Batch) -> tuple[Tensor, Tensor]:
        found = spectral_density(
            _hessian(model, p, e, b),
            p,
            iterations=min(curvature.iterations, sum(leaf.numel() for leaf in leaves(p))),
            probes=curvature.probes,
            generator=curvature.generator(),
            points=2,
        )
        return found.nodes, found.weights

    nodes, weights = (x.flatten(0, 1) for x in each(of, model, curvature))
    low, high = nodes.min(), nodes.max()
    width = (high - low).clamp_min(1e-12) / 200
    small = torch.logspace(-6, 0, 400, dtype=nodes.dtype, device=nodes.device)
    reach = torch.maximum(low.abs(), high.abs()) + 3 * width
    grid = torch.cat([-(reach * small).flip(0), reach * small])
    far = (weights * (nodes < -1e-3 * high)).sum(1).mean()
    values = {"lowest": low, "highest": high, "share_below_minus_highest_by_1000": far}
    return Finding(values, density=(grid, broadened(nodes, weights, grid, width)))


def traces(model: Predictive, curvature: Curvature) -> Finding:
    """Of Hessian and GGN, by Hutch++, with standard errors."""
    finding = Finding()
    for name, operator in _OPERATORS.items():

        def trace(p: Params, e: Any, b: Batch, operator: Any = operator) -> tuple[Tensor, Tensor]:
            found = trace_estimate(
                operator(model, p, e, b),
                p,
                products=curvature.products,
                generator=curvature.generator(),
                method="hutch++",
            )
            return found.trace, found.standard_error

        values, errors = each(trace, model, curvature)
        finding.values[name] = values
        finding.values[f"{name}_standard_error"] = errors
    return finding


def _hessian(model: Predictive, params: Params, extra: Any, batch: Batch) -> Any:
    return hessian_operator(loss_of(model, extra), params, [batch])


def _ggn(model: Predictive, params: Params, extra: Any, batch: Batch) -> Any:
    return ggn_operator(model.outputs_fn(extra), criterion(model), params, [batch])


_OPERATORS: dict[str, Callable[..., Any]] = {"hessian": _hessian, "ggn": _ggn}
