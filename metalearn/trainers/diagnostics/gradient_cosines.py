"""Whether gradients of tasks, or of members, point the same way.

Axes: G populations of a block, n units of a chunk, K units that are compared, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metalearn.schema import Kind, choice, entries, list_of, map_of, maybe, square, text, whole
from metalearn.tracking import Tracker, matrix_figure
from metalearn.trainers.diagnostics.protocol import Chunk, Diagnostic, Eye, Units, Watched

__all__ = ["GradientCosines", "Kept"]

_MOST = 32


class Kept(Eye):
    """The gradients of the first K ≤ 32 units of the first population; they are held at once."""

    def __init__(self, units: Units) -> None:
        super().__init__(units)
        self._rows: list[Tensor] = []
        self._blocks = 0

    def begin(self) -> None:
        """Count blocks: the first is kept."""
        self._blocks += 1

    def see(self, chunk: Chunk) -> None:
        """Keep what is still wanted."""
        room = _MOST - sum(map(len, self._rows))
        if self._blocks == 1 and room > 0:
            first = [grads[0, :room].detach() for grads in chunk.values()]
            flat = [grads.reshape(len(grads), -1) for grads in first]
            self._rows.append(torch.cat(flat, 1))

    def cosines(self) -> Tensor:
        """``[K, K]``; NaN in the rows of gradients that are zero or not finite."""
        rows = torch.cat(self._rows)
        norms = rows.norm(dim=1, keepdim=True)
        unit = rows / norms
        found: Tensor = (unit @ unit.T).clamp(-1, 1).double().cpu()
        return found


class GradientCosines(Diagnostic):
    """Cosines between the gradients of tasks and of members.

    Between members they are between different points of parameter space: near 0 where members
    explore apart from each other.
    """

    name = "gradient_cosines"
    kinds = ("task", "member")
    eye = Kept

    def __init__(self) -> None:
        self._newest: dict[str, tuple[int, Tensor, list[str] | None]] = {}

    def conclude(
        self, step: int, watched: Watched, seen: Mapping[str, Any], tracker: Tracker
    ) -> Mapping[str, float]:
        """Mean and lowest cosine of pairs, and the share of pairs that point against each other."""
        numbers: dict[str, float] = {}
        for kind, eye in seen.items():
            matrix = eye.cosines()
            labels = None if eye.units.labels is None else list(eye.units.labels)[: len(matrix)]
            self._newest[kind] = (step + 1, matrix, labels)
            rows, columns = torch.triu_indices(len(matrix), len(matrix), offset=1)
            pairs = matrix[rows, columns]
            pairs = pairs[torch.isfinite(pairs)]
            if len(pairs):
                numbers[f"gradient_cosines/{kind}_mean"] = float(pairs.mean())
                numbers[f"gradient_cosines/{kind}_lowest"] = float(pairs.min())
                numbers[f"gradient_cosines/{kind}_opposed"] = float((pairs < 0).double().mean())
        return numbers

    def draw(self, step: int, tracker: Tracker) -> None:
        """The newest matrix."""
        for kind, (when, matrix, labels) in self._newest.items():
            figure = matrix_figure(
                matrix,
                title=f"gradients of {kind}s at step {when}",
                label="cosine",
                names=labels,
            )
            tracker.figure(step, f"gradient_cosines/{kind}", figure)

    def state(self) -> dict[str, Any]:
        """The newest matrix, which may not have been drawn yet."""
        return {kind: list(entry) for kind, entry in self._newest.items()}

    def state_kind(self) -> Kind:
        """A step, a matrix and the names of its rows."""
        return map_of(choice(*self.kinds), entries(whole(), square, maybe(list_of(text))))

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self._newest = {k: (when, m.cpu(), names) for k, (when, m, names) in state.items()}
