"""How much gradients of units differ, layer by layer.

Axes: none; numbers are of layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from metalearn.tracking import Tracker
from metalearn.trainers.diagnostics.moments import MOMENTS, by_layer, noise_over_populations, ratio
from metalearn.trainers.diagnostics.protocol import GradientDiagnostic, GradientUnits
from metalearn.trainers.diagnostics.result import DiagnosticResult

__all__ = ["GradientVariance"]


class GradientVariance(GradientDiagnostic):
    """Variance tr(Σ) of one unit's gradient, and signal-to-noise |G|²/tr(Σ), by layer.

    Both parts are unbiased. The signal-to-noise ratio of the mean of N gradients is N times that.
    """

    name = "gradient_variance"
    reading = (
        "How far gradients of units scatter around their mean, by layer. Alarming: a layer "
        "whose signal-to-noise ratio times the units of a batch is far below 1, as its steps "
        "are noise."
    )
    kinds = ("sample", "shot", "task")
    reduction = MOMENTS
    title = "gradients"

    def result(self, reduced: Any, units: GradientUnits) -> DiagnosticResult:
        """Totals, and numbers of layers."""
        found = noise_over_populations(reduced)
        noise, signal = by_layer(found.noise_by_leaf), by_layer(found.signal_by_leaf)
        return DiagnosticResult(
            {
                "variance": found.noise,
                "snr": torch.tensor(ratio(found.signal, found.noise), dtype=torch.float64),
            },
            {
                "variance": {layer: float(value) for layer, value in noise.items()},
                "snr": {layer: ratio(signal[layer], noise[layer]) for layer in noise},
            },
            count=units.count,
        )

    def record(
        self, step: int, kind: str, result: DiagnosticResult, tracker: Tracker
    ) -> Mapping[str, float]:
        """Totals; the layers go to the tracker as curves."""
        self.seen_layers(step, kind, result)
        for name, layers in result.layers.items():
            tracker.curves(step + 1, f"gradient_{name}/{kind}_by_layer", layers)
        return {f"gradient_{name}/{kind}": float(v) for name, v in result.values.items()}
