"""Mean and spread of gradients that are seen a few at a time.

Axes: G populations, n units of a chunk, N units of a population.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metalearn.core import NoiseScale, Reduction, noise_average

__all__ = ["MOMENTS", "by_layer", "noise_of", "noise_over_populations", "ratio"]


def _update(state: Any, grads: Any) -> Any:
    """Merge n further units into (count, means, sums of squared deviations)."""
    count, means, squares = state
    new = next(iter(grads.values())).shape[0]
    total = count + new
    next_means, next_squares = {}, {}
    for name, values in grads.items():
        values = values.reshape(new, -1)
        mean = values.mean(0)
        square = (values - mean).square().sum()
        if count:
            gap = mean - means[name]
            square = square + squares[name] + gap.square().sum() * (count * new / total)
            mean = means[name] + gap * (new / total)
        next_means[name], next_squares[name] = mean, square
    return total, next_means, next_squares


def _finish(state: Any) -> Any:
    """Noise and signal of each parameter."""
    count, means, squares = state
    noise = {name: s / (count - 1) if count > 1 else s * torch.nan for name, s in squares.items()}
    signal = {name: m.square().sum() - noise[name] / count for name, m in means.items()}
    return noise, signal


MOMENTS = Reduction(lambda params: (0, {}, {}), _update, _finish)
"""Unbiased tr(Σ) and |G|² of each parameter: two dicts of scalars.

tr(Σ) = 1/(N−1)·Σ_i ‖g_i − ḡ‖², |G|² = ‖ḡ‖² − tr(Σ)/N; NaN where N is 1. One mean gradient and one
number for each parameter are kept; chunks are merged as in Chan, Golub and LeVeque, 1979.
"""


def noise_over_populations(reduced: Any) -> NoiseScale:
    """Means over populations of what `MOMENTS` gave; the ratio is that of sums over parameters."""
    noise, signal = (
        {name: values.mean().cpu().double() for name, values in part.items()} for part in reduced
    )
    return noise_of(noise, signal)


def noise_of(noise: Mapping[str, Tensor], signal: Mapping[str, Tensor]) -> NoiseScale:
    """A noise scale from its parts by parameter (or layer)."""
    total, strength = (torch.stack(list(part.values())).sum() for part in (noise, signal))
    parts = NoiseScale(total / strength, total, strength, dict(noise), dict(signal))
    average = noise_average()
    return average.value(average.update(average.init(parts.noise_by_leaf), parts))


def by_layer(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums over the parameters of a layer: ``layers.0`` of ``layers.0.weight`` and its bias."""
    sums: dict[str, Tensor] = {}
    for name, value in values.items():
        layer = name.rpartition(".")[0] or name
        sums[layer] = sums[layer] + value if layer in sums else value
    return sums


def ratio(numerator: Tensor, denominator: Tensor) -> float:
    """A quotient; NaN where the denominator, an unbiased estimate, is not above 0."""
    above = float(denominator) > 0
    return float(numerator) / float(denominator) if above else float("nan")
