"""Gradient noise scale over a training: whether more samples, shots or tasks would help.

Axes: S looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from metalearn.core import noise_average
from metalearn.schema import (
    Kind,
    choice,
    entries,
    list_of,
    map_of,
    mapping,
    number,
    tensor_like,
    text,
)
from metalearn.tracking import Tracker, noise_scale_figure
from metalearn.trainers.diagnostics.moments import (
    MOMENTS,
    by_layer,
    noise_of,
    noise_over_populations,
    ratio,
)
from metalearn.trainers.diagnostics.protocol import GradientDiagnostic, GradientUnits
from metalearn.trainers.diagnostics.result import DiagnosticResult

__all__ = ["NoiseScales"]

_DECAY = 0.9  # of the averages, from one look to the next
_BETWEEN = {"sample": "samples", "shot": "shots, within tasks", "task": "tasks"}


class NoiseScales(GradientDiagnostic):
    """Noise scale B = tr(Σ)/|G|² of samples, of shots within tasks, of tasks.

    A mean over N units has noise of relative size B/N in its squared length: above 1, noise
    outweighs the gradient, and more units of this kind would help; far below 1, they would not.
    Of a meta-learner, shots are those of the inner gradient at the initial parameters, tasks those
    of the meta-gradient, so the two ratios tell where further data are worth their cost. tr(Σ) and
    |G|² are unbiased and, in a training, averaged separately over looks (exponentially, with 0.9)
    before their ratio is taken. Each look counts in units of its mean ‖g_i‖² = tr(Σ) + |G|², so
    that the long gradients of the beginning do not drown what comes later. A look with one unit
    tells nothing and is left out; while |G|² is not above 0 there is no value (NaN).

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", 2018.
    """

    name = "noise_scale"
    reading = (
        "How many units a mean takes until noise and gradient are alike, tr(Σ)/|G|²; per "
        "batch, over the units that it has. Alarming: far above 1 per batch, as a step is "
        "mostly noise and more units or a smaller rate would help. No value: |G|² cannot be "
        "told from 0, as at a minimum."
    )
    kinds = ("sample", "shot", "task")
    reduction = MOMENTS
    title = "gradient noise"

    def __init__(self) -> None:
        self._averages: dict[str, Any] = {}
        self._history: dict[str, list[list[float]]] = {}

    def result(self, reduced: Any, units: GradientUnits) -> DiagnosticResult:
        """Noise, signal and their ratio, in total and by layer, of these gradients alone."""
        found = noise_over_populations(reduced)
        noise, signal = by_layer(found.noise_by_leaf), by_layer(found.signal_by_leaf)
        scale = torch.tensor(ratio(found.noise, found.signal), dtype=torch.float64)
        return DiagnosticResult(
            {
                "noise": found.noise,
                "signal": found.signal,
                "noise_scale": scale,
                "noise_scale_per_batch": scale / units.count,
            },
            {
                "noise": {name: float(value) for name, value in noise.items()},
                "noise_scale": {name: ratio(noise[name], signal[name]) for name in noise},
            },
            count=units.count,
            details=(noise, signal),
        )

    def record(
        self, step: int, kind: str, result: DiagnosticResult, tracker: Tracker
    ) -> Mapping[str, float]:
        """Averaged noise scales in total, and as curves by layer; parts as of this step."""
        average = noise_average(_DECAY)
        noise, signal = result.values["noise"], result.values["signal"]
        length = noise + signal
        layers = noise_of(*({k: v / length for k, v in part.items()} for part in result.details))
        before = self._averages.get(kind) or average.init(layers.noise_by_leaf)
        self._averages[kind] = average.update(before, layers)
        mean = average.value(self._averages[kind])
        total = ratio(mean.noise, mean.signal)
        scales = {
            layer: ratio(mean.noise_by_leaf[layer], mean.signal_by_leaf[layer])
            for layer in mean.noise_by_leaf
        }
        self.seen_layers(step, kind, DiagnosticResult({}, {"noise_scale": scales}))
        tracker.curves(step + 1, f"noise_scale/{kind}_by_layer", scales)
        self._history.setdefault(kind, []).append([float(step + 1), total / result.count])
        return {
            f"noise_scale/{kind}": total,
            f"noise_scale/{kind}_per_batch": total / result.count,
            f"noise_scale/{kind}_noise": float(noise),
            f"noise_scale/{kind}_signal": float(signal),
        }

    def draw(self, step: int, tracker: Tracker) -> None:
        """All kinds against the number of units at hand, and layers."""
        super().draw(step, tracker)
        curves = {
            _BETWEEN[kind]: tuple(torch.tensor(rows, dtype=torch.float64).T)
            for kind, rows in self._history.items()
        }
        if curves:
            figure = noise_scale_figure(curves, title=f"gradient noise, step {step}")
            tracker.figure(step, "noise_scale/over_training", figure)

    def state(self) -> dict[str, Any]:
        """Averages and what has been drawn so far."""
        return {"averages": self._averages, "history": self._history}

    def state_kind(self) -> Kind:
        """A weight and two trees by layer; rows of a step and a scale."""
        kind, row = choice(*self.kinds), list_of(number(nan=True), length=2)
        scalar = tensor_like(torch.zeros(()))
        parts = entries(scalar, map_of(text, scalar), map_of(text, scalar))
        return mapping({"averages": map_of(kind, parts), "history": map_of(kind, list_of(row))})

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self._averages, self._history = dict(state["averages"]), dict(state["history"])
