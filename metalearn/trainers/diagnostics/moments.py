"""Mean and spread of gradients that are seen a few at a time.

Axes: G populations of a block, n units of a chunk, N units of a population.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metalearn.core import NoiseScale, noise_average
from metalearn.trainers.diagnostics.protocol import Chunk, Eye, Units

__all__ = ["Moments", "by_layer", "noise_of", "ratio"]


class Moments(Eye):
    """Unbiased tr(Σ) and |G|² of each parameter, averaged over populations.

    tr(Σ) = 1/(N−1)·Σ_i ‖g_i − ḡ‖², |G|² = ‖ḡ‖² − tr(Σ)/N; NaN where N is 1. Of a block, ḡ and one
    number for each parameter are kept; chunks are merged as in Chan, Golub and LeVeque, 1979.
    """

    def __init__(self, units: Units) -> None:
        super().__init__(units)
        self._noises: dict[str, list[Tensor]] = {}
        self._signals: dict[str, list[Tensor]] = {}
        self.begin()

    def begin(self) -> None:
        """Forget the means of the block before."""
        self._count = 0
        self._means: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}

    def see(self, chunk: Chunk) -> None:
        """Merge n further units."""
        new = next(iter(chunk.values())).shape[1]
        total = self._count + new
        for name, grads in chunk.items():
            grads = grads.detach().reshape(*grads.shape[:2], -1)
            mean = grads.mean(1)
            squares = (grads - mean[:, None]).square().sum((1, 2))
            if self._count:
                gap = mean - self._means[name]
                squares += self._squares[name]
                squares += gap.square().sum(1) * (self._count * new / total)
                mean = self._means[name] + gap * (new / total)
            self._means[name], self._squares[name] = mean, squares
        self._count = total

    def end(self) -> None:
        """Take down the block's populations."""
        for name, squares in self._squares.items():
            known = self._count > 1
            noise = squares / (self._count - 1) if known else squares * torch.nan
            signal = self._means[name].square().sum(1) - noise / self._count
            self._noises.setdefault(name, []).append(noise)
            self._signals.setdefault(name, []).append(signal)

    def result(self) -> NoiseScale:
        """Means over populations, and the ratio of their sums over parameters."""
        noise, signal = (
            {name: torch.cat(values).mean().double().cpu() for name, values in found.items()}
            for found in (self._noises, self._signals)
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
