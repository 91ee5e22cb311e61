"""Gradients of trained models: of samples, of whole models, of tasks.

Axes: G models (members, tasks), N samples of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.core.tree import leaf_names, leaves
from metalearn.trainers.diagnosis.finding import Curvature, Finding, each, loss_of
from metalearn.trainers.diagnostics import Predictive, Units
from metalearn.trainers.diagnostics.gradient_cosines import Kept
from metalearn.trainers.diagnostics.gradient_norms import Norms
from metalearn.trainers.diagnostics.moments import Moments, by_layer, ratio
from metalearn.trainers.diagnostics.sources import sample_blocks
from metalearn.types import Batch, Params

__all__ = ["cosines", "diagnose_units", "gradient_norms", "noise_scale"]


def diagnose_units(units: Units, names: Sequence[str]) -> dict[str, Finding]:
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


def gradient_norms(model: Predictive, _: Curvature) -> Finding:
    """Quantiles over all samples of all models."""
    return _sample_pass(model)["gradient_norms"]


def noise_scale(model: Predictive, _: Curvature) -> Finding:
    """tr(Σ)/|G|² of samples, both parts averaged over models."""
    return _sample_pass(model)["noise_scale"]


def _sample_pass(model: Predictive) -> dict[str, Finding]:
    count = leaves(model.batch)[0].shape[1]
    units = Units(
        "sample",
        lambda: sample_blocks(lambda e: loss_of(model, e), model.params, model.extra, model.batch),
        int(count),
    )
    return diagnose_units(units, ("gradient_norms", "noise_scale"))


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


def cosines(model: Predictive, curvature: Curvature) -> Finding:
    """Between the mean gradients of models."""

    def of(params: Params, extra: Any, batch: Batch) -> Params:
        return torch.func.grad(loss_of(model, extra))(params, batch)

    grads = each(of, model, curvature)
    units = Units("model", lambda: [], len(leaves(grads)[0]))
    kept = Kept(units)
    kept.begin()
    kept.see(dict(zip(leaf_names(grads), (g[None] for g in leaves(grads)))))
    return Finding({}, matrix=kept.cosines())
