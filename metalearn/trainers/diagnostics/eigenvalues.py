"""The largest eigenvalues of Hessian and GGN.

Axes: G models, K Lanczos iterations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from metalearn.core import top_eigenvalues
from metalearn.core.tree import leaves
from metalearn.trainers.diagnostics.models import CURVATURES, map_models
from metalearn.trainers.diagnostics.protocol import ModelDiagnostic, PredictiveModels
from metalearn.trainers.diagnostics.result import DiagnosticResult
from metalearn.trainers.diagnostics.settings import CurvatureSettings
from metalearn.types import Batch, Params

__all__ = ["Eigenvalues"]


class Eigenvalues(ModelDiagnostic):
    """The largest of Hessian and GGN; the largest residual tells how far they may be off."""

    name = "eigenvalues"
    reading = (
        "The sharpest curvatures of the loss. Alarming: a residual that is as large as the "
        "eigenvalues, as these are then not found yet and more iterations are needed; a "
        "largest above 2 ÷ learning rate, beyond which plain gradient descent diverges."
    )
    kinds = ("loss",)
    in_training = False
    settings = ("eigenvalues", "iterations")

    def result(
        self, models: Sequence[PredictiveModels], settings: CurvatureSettings
    ) -> DiagnosticResult:
        """Of each model, from the largest on."""
        result = DiagnosticResult()
        for name, operator in CURVATURES.items():
            top = _top(operator, settings)
            values, residuals = map_models(top, models, settings.models_at_once)
            for place in range(values.shape[1]):
                result.values[f"{name}_{place + 1}"] = values[:, place]
            result.values[f"{name}_largest_residual"] = residuals.amax(1)
        return result


def _top(operator: Callable[..., Any], settings: CurvatureSettings) -> Callable[..., Any]:
    """Eigenvalues of one model and their residuals."""

    def of(
        models: PredictiveModels, params: Params, extra: Any, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        iterations = min(settings.iterations, sum(leaf.numel() for leaf in leaves(params)))
        found = top_eigenvalues(
            operator(models, params, extra, batch),
            params,
            count=min(settings.eigenvalues, iterations),
            iterations=iterations,
            generator=settings.generator(),
        )
        return found.values, found.residuals

    return of
