"""How long gradients of units are: quantiles, histogram, clipped and non-finite ones.

Axes: G populations, N units of each, S looks, Q quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from metalearn.core import gradient_norms
from metalearn.schema import Kind, choice, list_of, map_of, mapping, number, whole
from metalearn.tracking import Tracker, quantile_bands_figure
from metalearn.trainers.diagnostics.protocol import GradientDiagnostic, GradientUnits
from metalearn.trainers.diagnostics.result import DiagnosticResult

__all__ = ["GradientNorms"]

_QUANTILES = {"lowest": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "highest": 1.0}
_PLURALS = {"sample": "samples", "shot": "shots", "task": "tasks", "member": "members"}


class GradientNorms(GradientDiagnostic):
    """Distribution of ‖g_i‖: quantiles, histogram, clip fraction, non-finite count.

    Quantiles are over units of all populations whose norm is finite.
    """

    name = "gradient_norms"
    reading = (
        "How long gradients of single units are. Alarming: any that is not finite; a highest "
        "that is hundreds of times the median, as a few units then make the step and a clip "
        "is needed."
    )
    kinds = ("sample", "shot", "task", "member")
    reduction = gradient_norms()

    def __init__(self) -> None:
        self._history: dict[str, list[list[float]]] = {}
        self._counts: dict[str, int] = {}

    def result(self, reduced: Any, units: GradientUnits) -> DiagnosticResult:
        """Quantiles, the share beyond the clipping norm, how many are not finite."""
        norms = reduced.flatten().cpu()
        finite = norms[torch.isfinite(norms)]
        levels = finite.new_tensor(list(_QUANTILES.values()))
        found = torch.quantile(finite, levels) if len(finite) else levels * math.nan
        values = dict(zip(_QUANTILES, found))
        values["non_finite"] = torch.tensor(float(len(norms) - len(finite)))
        if math.isfinite(units.clip_norm):
            values["clip_fraction"] = (norms > units.clip_norm).double().mean()
        return DiagnosticResult(values, distribution=finite, count=units.count)

    def record(
        self, step: int, kind: str, result: DiagnosticResult, tracker: Tracker
    ) -> Mapping[str, float]:
        """All of it, and quantiles for the bands."""
        found = [float(result.values[name]) for name in _QUANTILES]
        self._history.setdefault(kind, []).append([float(step + 1), *found])
        assert result.distribution is not None
        self._counts[kind] = len(result.distribution) + int(result.values["non_finite"])
        return super().record(step, kind, result, tracker)

    def draw(self, step: int, tracker: Tracker) -> None:
        """Bands of the quantiles over training."""
        for kind, rows in self._history.items():
            steps, *quantiles = torch.tensor(rows, dtype=torch.float64).T
            figure = quantile_bands_figure(
                steps,
                torch.stack(quantiles),
                ylabel="norm of the gradient",
                title=f"gradient norms of {_PLURALS[kind]}, step {step}",
                of=_PLURALS[kind],
                count=self._counts[kind],
            )
            tracker.figure(step, f"gradient_norms/{kind}_bands", figure)

    def state(self) -> dict[str, Any]:
        """The quantiles so far."""
        return {"history": self._history, "counts": self._counts}

    def state_kind(self) -> Kind:
        """Rows of a step and its quantiles."""
        kind, row = choice(*self.kinds), list_of(number(nan=True), length=1 + len(_QUANTILES))
        return mapping({"history": map_of(kind, list_of(row)), "counts": map_of(kind, whole())})

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self._history, self._counts = dict(state["history"]), dict(state["counts"])
