"""How much gradients of units differ, layer by layer.

Axes: none; numbers are of layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metalearn.tracking import Tracker
from metalearn.trainers.diagnostics.moments import Moments, by_layer, ratio
from metalearn.trainers.diagnostics.protocol import Diagnostic, Watched

__all__ = ["GradientVariance"]


class GradientVariance(Diagnostic):
    """Variance tr(Σ) of one unit's gradient, and signal-to-noise |G|²/tr(Σ), by layer.

    Both parts are unbiased. The signal-to-noise ratio of the mean of N gradients is N times that.
    """

    name = "gradient_variance"
    kinds = ("sample", "shot", "task")
    eye = Moments

    def conclude(
        self, step: int, watched: Watched, seen: Mapping[str, Any], tracker: Tracker
    ) -> Mapping[str, float]:
        """Totals; the layers go to the tracker as curves."""
        numbers: dict[str, float] = {}
        for kind, eye in seen.items():
            found = eye.result()
            noise, signal = by_layer(found.noise_by_leaf), by_layer(found.signal_by_leaf)
            variances = {layer: float(value) for layer, value in noise.items()}
            snr = {layer: ratio(signal[layer], noise[layer]) for layer in noise}
            tracker.curves(step + 1, f"gradient_variance/{kind}_by_layer", variances)
            tracker.curves(step + 1, f"gradient_snr/{kind}_by_layer", snr)
            numbers[f"gradient_variance/{kind}"] = float(found.noise)
            numbers[f"gradient_snr/{kind}"] = ratio(found.signal, found.noise)
        return numbers
