"""What gradients and curvature of trained models look like: G models at once, on data of a split.

Axes: G models (members, tasks), N samples of each, K Lanczos iterations, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
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
from metalearn.core.fisher_problem import FisherProblem
from metalearn.core.likelihood import FisherKind, Likelihood
from metalearn.core.spectrum import broadened
from metalearn.core.tree import leaf_names, leaves, tree_map
from metalearn.errors import SettingError, check_whole
from metalearn.trainers.diagnostics import Predictive, Units
from metalearn.trainers.diagnostics.fisher_trace import fisher_traces
from metalearn.trainers.diagnostics.gradient_cosines import Kept
from metalearn.trainers.diagnostics.gradient_norms import Norms
from metalearn.trainers.diagnostics.moments import Moments, by_layer, ratio
from metalearn.trainers.diagnostics.sources import sample_blocks
from metalearn.types import Batch, LossFn, Params

__all__ = ["QUANTITIES", "Curvature", "Finding", "diagnose_models", "diagnose_units"]

_RANK_ROWS = 512  # gradients of which an effective rank is taken


@dataclass(frozen=True)
class Curvature:
    """How eigenvalues and traces are sought.

    Attributes:
        eigenvalues: how many of the largest.
        iterations: K of Lanczos.
        probes: random directions of a spectral density.
        products: with the matrix, for a trace.
        models_at_once: of an outer vmap; None takes all.
        seed: of random directions.

    Raises:
        SettingError: a number out of range.
    """

    eigenvalues: int = 5
    iterations: int = 30
    probes: int = 2
    products: int = 30
    models_at_once: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("eigenvalues", self.eigenvalues, 1)
        check_whole("iterations", self.iterations, max(2, self.eigenvalues))
        check_whole("probes", self.probes, 1)
        check_whole("products", self.products, 4)
        check_whole("seed", self.seed, 0)
        if self.models_at_once is not None:
            check_whole("models_at_once", self.models_at_once, 1)

    def generator(self) -> torch.Generator:
        """A fresh one: every quantity has the same draws whatever else is asked for."""
        return torch.Generator().manual_seed(self.seed)


@dataclass
class Finding:
    """One quantity.

    Attributes:
        values: number by name, each ``[G]`` or one number.
        layers: name to a number for each layer.
        matrix: cosines, if any.
        density: λ ``[S]`` and density ``[S]``, if any.
        norms: of all units, if any.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    matrix: Tensor | None = None
    density: tuple[Tensor, Tensor] | None = None
    norms: Tensor | None = None


def diagnose_models(
    model: Predictive, quantities: Mapping[str, str], curvature: Curvature
) -> dict[str, Finding]:
    """Quantities of G models, each on its own N samples, all models at once.

    Args:
        model: the models and what they are shown.
        quantities: names in `QUANTITIES`; the values are not looked at.
        curvature: settings of eigenvalues, densities and traces.

    Raises:
        SettingError: an unknown quantity.
    """
    for name in quantities:
        if name not in QUANTITIES:
            raise SettingError("what", name, f"known are {', '.join(QUANTITIES)}")
    return {name: QUANTITIES[name](model, curvature) for name in quantities}


def diagnose_units(units: Units, names: Mapping[str, str]) -> dict[str, Finding]:
    """Norms, noise scale and cosines, as far as asked for, in one pass over gradients of units."""
    norms, moments, kept = Norms(units), Moments(units), Kept(units)
    for block in units.blocks():
        for eye in (norms, moments, kept):
            eye.begin()
        for chunk in block:
            for eye in (norms, moments, kept):
                eye.see(chunk)
        for eye in (norms, moments, kept):
            eye.end()
    found = {
        "gradient_norms": _of_norms(norms.result()),
        "noise_scale": _of_moments(moments, units.count),
        "cosines": Finding({}, matrix=kept.cosines()),
    }
    return {name: finding for name, finding in found.items() if name in names}


def _gradient_norms(model: Predictive, _: Curvature) -> Finding:
    return _sample_pass(model)["gradient_norms"]


def _noise_scale(model: Predictive, _: Curvature) -> Finding:
    return _sample_pass(model)["noise_scale"]


def _sample_pass(model: Predictive) -> dict[str, Finding]:
    count = leaves(model.batch)[0].shape[1]
    units = Units(
        "sample",
        lambda: sample_blocks(lambda e: _loss(model, e), model.params, model.extra, model.batch),
        int(count),
    )
    return diagnose_units(units, {"gradient_norms": "", "noise_scale": ""})


def _of_norms(norms: Tensor) -> Finding:
    finite = norms[torch.isfinite(norms)]
    levels = finite.new_tensor([0, 0.25, 0.5, 0.75, 1])
    names = ("lowest", "q25", "median", "q75", "highest")
    found = torch.quantile(finite, levels) if len(finite) else levels * torch.nan
    values = dict(zip(names, found))
    values["non_finite"] = torch.tensor(float(len(norms) - len(finite)))
    return Finding(values, norms=finite)


def _of_moments(moments: Moments, count: int) -> Finding:
    found = moments.result()
    noise, signal = by_layer(found.noise_by_leaf), by_layer(found.signal_by_leaf)
    scale = ratio(found.noise, found.signal)
    return Finding(
        {
            "noise": found.noise,
            "signal": found.signal,
            "noise_scale": torch.tensor(scale),
            "noise_scale_per_batch": torch.tensor(scale / count),
        },
        {
            "noise": {name: float(value) for name, value in noise.items()},
            "noise_scale": {name: ratio(noise[name], signal[name]) for name in noise},
        },
    )


def _cosines(model: Predictive, curvature: Curvature) -> Finding:
    """Between the mean gradients of models."""

    def of(params: Params, extra: Any, batch: Batch) -> Params:
        return torch.func.grad(_loss(model, extra))(params, batch)

    grads = _each(of, model, curvature)
    units = Units("model", lambda: [], len(leaves(grads)[0]))
    kept = Kept(units)
    kept.begin()
    kept.see(dict(zip(leaf_names(grads), (g[None] for g in leaves(grads)))))
    return Finding({}, matrix=kept.cosines())


def _fisher(model: Predictive, curvature: Curvature) -> Finding:
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

        sums = tree_map(lambda d: d.flatten(1).sum(1).mean(), _each(diagonal, model, curvature))
        finding.layers[f"diagonal_{kind}"] = {k: float(v) for k, v in by_layer(sums).items()}
        finding.values[f"effective_rank_{kind}"] = _each(rank, model, curvature)
    return finding


def _gram(grads: Params) -> Tensor:
    """Products of all gradients ``[n, R, ...]``: has the eigenvalues of N·F beside zeros."""
    rows = torch.cat([g.reshape(g.shape[0] * g.shape[1], -1) for g in leaves(grads)], 1)
    return rows @ rows.mT


def _eigenvalues(model: Predictive, curvature: Curvature) -> Finding:
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

        values, residuals = _each(top, model, curvature)
        for place in range(values.shape[1]):
            finding.values[f"{name}_{place + 1}"] = values[:, place]
        finding.values[f"{name}_largest_residual"] = residuals.amax(1)
    return finding


def _density(model: Predictive, curvature: Curvature) -> Finding:
    """Of the Hessian, the mean over models."""

    def density(p: Params, e: Any, b: Batch) -> tuple[Tensor, Tensor]:
        found = spectral_density(
            _hessian(model, p, e, b),
            p,
            iterations=min(curvature.iterations, sum(leaf.numel() for leaf in leaves(p))),
            probes=curvature.probes,
            generator=curvature.generator(),
            points=2,
        )
        return found.nodes, found.weights

    nodes, weights = (x.flatten(0, 1) for x in _each(density, model, curvature))
    low, high = nodes.min(), nodes.max()
    width = (high - low).clamp_min(1e-12) / 200
    small = torch.logspace(-6, 0, 400, dtype=nodes.dtype, device=nodes.device)
    reach = torch.maximum(low.abs(), high.abs()) + 3 * width
    grid = torch.cat([-(reach * small).flip(0), reach * small])
    far = (weights * (nodes < -1e-3 * high)).sum(1).mean()
    values = {"lowest": low, "highest": high, "share_below_minus_highest_by_1000": far}
    return Finding(values, density=(grid, broadened(nodes, weights, grid, width)))


def _traces(model: Predictive, curvature: Curvature) -> Finding:
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

        values, errors = _each(trace, model, curvature)
        finding.values[name] = values
        finding.values[f"{name}_standard_error"] = errors
    return finding


def _hessian(model: Predictive, params: Params, extra: Any, batch: Batch) -> Any:
    return hessian_operator(_loss(model, extra), params, [batch])


def _ggn(model: Predictive, params: Params, extra: Any, batch: Batch) -> Any:
    return ggn_operator(model.outputs_fn(extra), _criterion(model), params, [batch])


_OPERATORS: dict[str, Callable[..., Any]] = {"hessian": _hessian, "ggn": _ggn}

QUANTITIES: dict[str, Callable[[Predictive, Curvature], Finding]] = {
    "gradient_norms": _gradient_norms,
    "noise_scale": _noise_scale,
    "cosines": _cosines,
    "fisher": _fisher,
    "eigenvalues": _eigenvalues,
    "density": _density,
    "traces": _traces,
}
"""All that can be asked for."""


def _each(function: Callable[..., Any], model: Predictive, curvature: Curvature) -> Any:
    """``function(params, extra, batch)`` of every model, in one vmap; the same draws for each."""
    mapped = torch.vmap(function, randomness="same", chunk_size=curvature.models_at_once)
    return tree_map(Tensor.detach, mapped(model.params, model.extra, model.batch))


def _criterion(model: Predictive) -> Callable[[Tensor, Tensor], Tensor]:
    """Mean −log p: cross-entropy, or the mean of squared errors over 2σ²."""
    if model.likelihood == "categorical":
        return F.cross_entropy
    return lambda f, y: (f - y).square().flatten(1).sum(1).mean() / (2 * model.variance)


def _loss(model: Predictive, extra: Any) -> LossFn:
    outputs, criterion = model.outputs_fn(extra), _criterion(model)
    return lambda params, batch: criterion(outputs(params, batch[0]), batch[1])
