"""Traces of Hessian and GGN.

Axes: G models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from metalearn.core import trace_estimate
from metalearn.trainers.diagnostics.models import CURVATURES, map_models
from metalearn.trainers.diagnostics.protocol import ModelDiagnostic, PredictiveModels
from metalearn.trainers.diagnostics.result import DiagnosticResult
from metalearn.trainers.diagnostics.settings import CurvatureSettings
from metalearn.types import Batch, Params

__all__ = ["CurvatureTraces"]


class CurvatureTraces(ModelDiagnostic):
    """Traces of Hessian and GGN by Hutch++, with standard errors."""

    name = "traces"
    reading = (
        "The sum of all curvatures; GGN is the part without that of the network itself. "
        "Alarming: a standard error as large as the trace, as more products are needed; a "
        "Hessian far from the GGN, as the data are not fitted yet."
    )
    kinds = ("loss",)
    in_training = False
    settings = ("products",)

    def result(
        self, models: Sequence[PredictiveModels], settings: CurvatureSettings
    ) -> DiagnosticResult:
        """Of each model."""
        result = DiagnosticResult()
        for name, operator in CURVATURES.items():
            traces, errors = map_models(_trace(operator, settings), models, settings.models_at_once)
            result.values[name] = traces
            result.values[f"{name}_standard_error"] = errors
        return result


def _trace(operator: Callable[..., Any], settings: CurvatureSettings) -> Callable[..., Any]:
    """The trace of one model and its standard error."""

    def of(
        models: PredictiveModels, params: Params, extra: Any, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        found = trace_estimate(
            operator(models, params, extra, batch),
            params,
            products=settings.products,
            generator=settings.generator(),
            method="hutch++",
        )
        return found.trace, found.standard_error

    return of
