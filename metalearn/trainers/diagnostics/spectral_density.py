"""Density of the Hessian's eigenvalues.

Axes: G models, K Lanczos iterations, S points of a density.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from metalearn.core import spectral_density
from metalearn.core.curvature.spectral_density import broadened
from metalearn.core.tree import leaves
from metalearn.tracking import spectrum_figure
from metalearn.trainers.diagnostics.models import hessian_of, map_models
from metalearn.trainers.diagnostics.protocol import ModelDiagnostic, PredictiveModels
from metalearn.trainers.diagnostics.result import DiagnosticResult
from metalearn.trainers.diagnostics.settings import CurvatureSettings
from metalearn.types import Batch, Params

__all__ = ["SpectralDensity"]


class SpectralDensity(ModelDiagnostic):
    """Density of the Hessian's eigenvalues, the mean over models."""

    name = "density"
    reading = (
        "Where the eigenvalues of the Hessian lie: most near 0 and a few far above are "
        "usual. Alarming: a lowest about as far below 0 as the highest is above, as this is "
        "a saddle and no minimum."
    )
    kinds = ("loss",)
    in_training = False
    settings = ("iterations", "probes")
    title = "Hessian"

    def result(
        self, models: Sequence[PredictiveModels], settings: CurvatureSettings
    ) -> DiagnosticResult:
        """The density on a grid that is logarithmic on both sides of 0, and its ends."""

        def of(
            models: PredictiveModels, params: Params, extra: Any, batch: Batch
        ) -> tuple[Tensor, Tensor]:
            found = spectral_density(
                hessian_of(models, params, extra, batch),
                params,
                iterations=min(settings.iterations, sum(leaf.numel() for leaf in leaves(params))),
                probes=settings.probes,
                generator=settings.generator(),
                points=2,
            )
            return found.nodes, found.weights

        nodes, weights = (x.flatten(0, 1) for x in map_models(of, models, settings.models_at_once))
        low, high = nodes.min(), nodes.max()
        width = (high - low).clamp_min(1e-12) / 200
        small = torch.logspace(-6, 0, 400, dtype=nodes.dtype, device=nodes.device)
        reach = torch.maximum(low.abs(), high.abs()) + 3 * width
        grid = torch.cat([-(reach * small).flip(0), reach * small])
        far = (weights * (nodes < -1e-3 * high)).sum(1).mean()
        values = {"lowest": low, "highest": high, "share_below_minus_highest_by_1000": far}
        return DiagnosticResult(values, density=(grid, broadened(nodes, weights, grid, width)))

    def figures(self, result: DiagnosticResult, of: str) -> Mapping[str, Figure]:
        """The density."""
        assert result.density is not None
        return {"": spectrum_figure(*result.density, title=f"{self.title}, {of}")}
