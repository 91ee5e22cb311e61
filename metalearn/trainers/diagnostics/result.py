"""What a diagnostic has found, and how it is read as numbers, as JSON and as pictures.

Axes: G models or populations, K units that are compared, S points of a density.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from metalearn.errors import SettingError
from metalearn.signatures import known_fields
from metalearn.tracking import layers_figure

__all__ = ["DiagnosticResult", "layer_figures", "pairs_of"]


@known_fields
@dataclass
class DiagnosticResult:
    """One quantity, of a step of a training or of a finished run.

    Attributes:
        values: number by name, each ``[G]`` or one number (which becomes a tensor).
        layers: name to a number for each layer.
        matrix: between K units, such as cosines, if any.
        labels: of the K units; None numbers them.
        density: eigenvalues λ ``[S]`` and their density ``[S]``, if any.
        distribution: a number for each unit, if any; what a histogram is made of.
        count: units of which a step's gradient is the mean; 0 of models.
        details: for the diagnostic itself: what its record in a training needs beside that.

    Raises:
        SettingError: a value that is no number.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    matrix: Tensor | None = None
    labels: Sequence[str] | None = None
    density: tuple[Tensor, Tensor] | None = None
    distribution: Tensor | None = None
    count: int = 0
    details: Any = None

    def __post_init__(self) -> None:
        self.values = {name: _number(name, value) for name, value in self.values.items()}

    def scalars(self) -> dict[str, float]:
        """One number for each value: its mean, with ``_low`` and ``_high`` where it has several."""
        numbers: dict[str, float] = {}
        for name, values in self.values.items():
            numbers[name] = float(values.mean() if values.ndim else values)
            if values.numel() > 1:
                numbers[f"{name}_low"] = float(values.min())
                numbers[f"{name}_high"] = float(values.max())
        return numbers

    def rows(self) -> dict[str, Tensor]:
        """The values, and those of the matrix between different units, ``pairs``."""
        pairs = pairs_of(self.matrix) if self.matrix is not None else torch.empty(0)
        return {**self.values, "pairs": pairs} if len(pairs) else dict(self.values)

    def as_json(self) -> dict[str, Any]:
        """Lists and numbers."""
        plain: dict[str, Any] = {
            name: values.tolist() if values.ndim else float(values)
            for name, values in self.values.items()
        }
        if self.layers:
            plain["by_layer"] = self.layers
        if self.matrix is not None:
            plain["matrix"] = self.matrix.tolist()
        if self.density is not None:
            grid, density = self.density
            plain["density"] = {"eigenvalue": grid.tolist(), "density": density.tolist()}
        return plain


def pairs_of(matrix: Tensor) -> Tensor:
    """Entries above the diagonal, ``[K·(K−1)/2]``."""
    rows, columns = torch.triu_indices(len(matrix), len(matrix), offset=1)
    return matrix[rows, columns]


def _number(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingError(f"values.{name}", value, "a number or a tensor of numbers is needed")
    return torch.tensor(float(value), dtype=torch.float64)


def layer_figures(result: DiagnosticResult, title: str) -> Mapping[str, Figure]:
    """A bar for each layer, a figure for each number of layers, by its name."""
    return {
        name: layers_figure(
            list(layers),
            torch.tensor(list(layers.values())),
            label=name.replace("_", " "),
            title=title,
        )
        for name, layers in result.layers.items()
    }
