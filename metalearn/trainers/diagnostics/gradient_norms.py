"""How long gradients of units are: quantiles, histogram, clipped and non-finite ones.

Axes: G populations of a block, n units of a chunk, S looks, Q quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metalearn.schema import Kind, choice, list_of, map_of, mapping, number, whole
from metalearn.tracking import Tracker, quantile_bands_figure
from metalearn.trainers.diagnostics.protocol import Chunk, Diagnostic, Eye, Units, Watched

__all__ = ["GradientNorms", "Norms"]

_QUANTILES = {"lowest": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "highest": 1.0}
_PLURALS = {"sample": "samples", "shot": "shots", "task": "tasks", "member": "members"}


class Norms(Eye):
    """‖g_i‖ of all units of all populations."""

    def __init__(self, units: Units) -> None:
        super().__init__(units)
        self._norms: list[Tensor] = []

    def see(self, chunk: Chunk) -> None:
        """Add the norms of n units of G populations."""
        squares = [g.detach().reshape(*g.shape[:2], -1).square().sum(2) for g in chunk.values()]
        self._norms.append(torch.stack(squares).sum(0).sqrt().flatten().cpu())

    def result(self) -> Tensor:
        """All norms, ``[G·N]`` over all blocks."""
        return torch.cat(self._norms)


class GradientNorms(Diagnostic):
    """Distribution of ‖g_i‖: quantiles over training, histogram, clip fraction, non-finite count.

    Quantiles are over units whose norm is finite.
    """

    name = "gradient_norms"
    kinds = ("sample", "shot", "task", "member")
    eye = Norms

    def __init__(self) -> None:
        self._history: dict[str, list[list[float]]] = {}
        self._counts: dict[str, int] = {}

    def conclude(
        self, step: int, watched: Watched, seen: Mapping[str, Any], tracker: Tracker
    ) -> Mapping[str, float]:
        """Quantiles, the share beyond the clipping norm, how many are not finite."""
        numbers: dict[str, float] = {}
        for kind, eye in seen.items():
            norms = eye.result()
            finite = norms[torch.isfinite(norms)]
            numbers[f"gradient_norms/{kind}_non_finite"] = float(len(norms) - len(finite))
            if math.isfinite(eye.units.limit):
                clipped = (norms > eye.units.limit).double().mean()
                numbers[f"gradient_norms/{kind}_clip_fraction"] = float(clipped)
            levels = finite.new_tensor(list(_QUANTILES.values()))
            found = [math.nan] * len(levels)
            if len(finite):
                found = torch.quantile(finite, levels).tolist()
                tracker.histograms(step + 1, "gradient_norms", {kind: finite})
            numbers |= {f"gradient_norms/{kind}_{n}": v for n, v in zip(_QUANTILES, found)}
            self._history.setdefault(kind, []).append([float(step + 1), *found])
            self._counts[kind] = len(norms)
        return numbers

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
