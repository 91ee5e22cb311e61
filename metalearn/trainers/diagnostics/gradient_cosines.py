"""Whether gradients of tasks, or of members, point the same way.

Axes: n units of a chunk, K units that are compared, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from metalearn.core import Reduction
from metalearn.core.tree import leaves
from metalearn.schema import Kind, choice, entries, list_of, map_of, maybe, square, text, whole
from metalearn.tracking import Tracker, matrix_figure
from metalearn.trainers.diagnostics.protocol import GradientDiagnostic, GradientUnits
from metalearn.trainers.diagnostics.result import DiagnosticResult, pairs_of

__all__ = ["GradientCosines"]

_MOST = 32


def _keep(rows: list[Tensor], grads: Any) -> list[Tensor]:
    """Flat gradients, as far as there is room."""
    room = _MOST - sum(map(len, rows))
    if room <= 0:
        return rows
    return [*rows, torch.cat([g[:room].flatten(1) for g in map(_columns, leaves(grads))], 1)]


def _columns(grads: Tensor) -> Tensor:
    return grads[:, None] if grads.dim() == 1 else grads


def _cosines(rows: list[Tensor]) -> Tensor:
    """``[K, K]``; NaN in the rows of gradients that are zero or not finite."""
    kept = torch.cat(rows)
    unit = kept / kept.norm(dim=1, keepdim=True)
    return torch.clamp(unit @ unit.T, -1, 1)


class GradientCosines(GradientDiagnostic):
    """Cosines between the gradients of tasks and of members, the first 32 of them.

    Between members they are between different points of parameter space: near 0 where members
    explore apart from each other. Of several populations the first is shown.
    """

    name = "gradient_cosines"
    reading = (
        "Whether gradients pull the same way: 1 is alike, 0 is unrelated, −1 is opposed. "
        "Alarming: tasks of which most pairs are opposed, as no step serves them all. "
        "Members near 0 are as they should be: they stand apart."
    )
    offline_name = "cosines"
    kinds = ("task", "member")
    reduction = Reduction(lambda params: [], _keep, _cosines)
    title = "gradients"

    def __init__(self) -> None:
        self._newest: dict[str, tuple[int, Tensor, list[str] | None]] = {}

    def result(self, reduced: Any, units: GradientUnits) -> DiagnosticResult:
        """Mean and lowest cosine of pairs, and the share of pairs that point against each other."""
        matrix = reduced[0].cpu().double()
        labels = None if units.labels is None else list(units.labels)[: len(matrix)]
        pairs = pairs_of(matrix)
        pairs = pairs[torch.isfinite(pairs)]
        values: dict[str, Tensor] = {}
        if len(pairs):
            opposed = (pairs < 0).double().mean()
            values = {"mean": pairs.mean(), "lowest": pairs.min(), "opposed": opposed}
        return DiagnosticResult(values, matrix=matrix, labels=labels, count=units.count)

    def record(
        self, step: int, kind: str, result: DiagnosticResult, tracker: Tracker
    ) -> Mapping[str, float]:
        """The numbers; the matrix is drawn at the next validation."""
        assert result.matrix is not None
        labels = None if result.labels is None else list(result.labels)
        self._newest[kind] = (step + 1, result.matrix, labels)
        return super().record(step, kind, result, tracker)

    def draw(self, step: int, tracker: Tracker) -> None:
        """The newest matrix."""
        for kind, (when, matrix, labels) in self._newest.items():
            title = f"gradients of {kind}s at step {when}"
            figure = matrix_figure(matrix, title=title, label="cosine", names=labels)
            tracker.figure(step, f"gradient_cosines/{kind}", figure)

    def figures(self, result: DiagnosticResult, of: str) -> Mapping[str, Figure]:
        """The matrix."""
        assert result.matrix is not None
        title = f"{self.title}, {of}"
        return {"": matrix_figure(result.matrix, title=title, label="cosine", names=result.labels)}

    def state(self) -> dict[str, Any]:
        """The newest matrix, which may not have been drawn yet."""
        return {kind: list(entry) for kind, entry in self._newest.items()}

    def state_kind(self) -> Kind:
        """A step, a matrix and the names of its rows."""
        return map_of(choice(*self.kinds), entries(whole(), square, maybe(list_of(text))))

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self._newest = {k: (when, m.cpu(), names) for k, (when, m, names) in state.items()}
