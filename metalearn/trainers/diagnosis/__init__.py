"""What gradients and curvature of trained models look like: G models at once, on given data.

Axes: G models (members, tasks), N samples of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from metalearn.errors import SettingError
from metalearn.trainers.diagnosis.curvature import density, eigenvalues, fisher, traces
from metalearn.trainers.diagnosis.finding import Curvature, Finding
from metalearn.trainers.diagnosis.gradients import (
    cosines,
    diagnose_units,
    gradient_norms,
    noise_scale,
)
from metalearn.trainers.diagnostics import Predictive

__all__ = ["QUANTITIES", "Curvature", "Finding", "diagnose_models", "diagnose_units"]

QUANTITIES: dict[str, Callable[[Predictive, Curvature], Finding]] = {
    "gradient_norms": gradient_norms,
    "noise_scale": noise_scale,
    "cosines": cosines,
    "fisher": fisher,
    "eigenvalues": eigenvalues,
    "density": density,
    "traces": traces,
}
"""All that can be asked for."""


def diagnose_models(
    model: Predictive, quantities: Sequence[str], curvature: Curvature
) -> dict[str, Finding]:
    """Quantities of G models, each on its own N samples, all models at once.

    Args:
        model: the models and what they are shown.
        quantities: names in `QUANTITIES`.
        curvature: settings of eigenvalues, densities and traces.

    Raises:
        SettingError: an unknown quantity.
    """
    for name in quantities:
        if name not in QUANTITIES:
            raise SettingError("what", name, f"known are {', '.join(QUANTITIES)}")
    return {name: QUANTITIES[name](model, curvature) for name in quantities}
