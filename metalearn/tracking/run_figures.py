"""Figures of what shapes a training: weights of examples, learning rates, distilled pictures.

Axes: N examples, K steps, n pictures; pictures [n, channels, height, width].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from metalearn.tracking.style import (
    BLUE,
    CYCLE,
    DPI,
    MARKERS,
    ORANGE,
    TITLE,
    legend_below,
    numpy_of,
    one_panel,
)

__all__ = ["example_weights_figure", "pictures_figure", "schedule_figure"]

_BINS, _COLUMNS, _MOST = 40, 10, 100


def example_weights_figure(weights: Tensor, *, wrong: Tensor | None = None, title: str) -> Figure:
    """How many examples have which weight; apart, those whose label is known to be wrong.

    Args:
        weights: ``[N]``; what is not finite is left out.
        wrong: ``[N]``, bool; None where nothing is known.
        title: stands above.

    Raises:
        ValueError: no weights, or another number of marks.
    """
    if (
        weights.dim() != 1
        or not len(weights)
        or (wrong is not None and wrong.shape != weights.shape)
    ):
        shapes = [list(weights.shape), None if wrong is None else list(wrong.shape)]
        raise ValueError(f"example_weights_figure: weights [N], wrong [N] are needed, got {shapes}")
    figure, axes = one_panel(title)
    known = numpy_of(weights)
    finite = np.isfinite(known)
    ends = (float(known[finite].min()), float(known[finite].max())) if finite.any() else (0.0, 1.0)
    edges = np.linspace(min(0.0, ends[0]), ends[1] + 1e-9, _BINS + 1).tolist()
    if wrong is None:
        axes.hist(known[finite], edges, color=BLUE)
    else:
        marked = numpy_of(wrong) > 0
        for chosen, colour, name in ((~marked, BLUE, "right"), (marked, ORANGE, "wrong")):
            label = f"{name} label ({int(chosen.sum())})"
            axes.hist(known[finite & chosen], edges, color=colour, alpha=0.65, label=label)
        legend_below(figure, columns=2)
    axes.set(xlabel="weight", ylabel="examples")
    return figure


def schedule_figure(rates: Mapping[str, Tensor], *, title: str) -> Figure:
    """Learning rates over the steps of a run, one line each.

    Args:
        rates: name to rates ``[K]``, or a scalar that holds for all steps.
        title: stands above.

    Raises:
        ValueError: no rates, or ones with more axes.
    """
    shapes = [list(value.shape) for value in rates.values()]
    if not shapes or any(len(shape) > 1 or shape == [0] for shape in shapes):
        raise ValueError(f"schedule_figure: rates [K] are needed, got {shapes}")
    figure, axes = one_panel(title)
    steps = max((shape[0] for shape in shapes if shape), default=1)
    for colour, mark, (name, value) in zip(CYCLE, MARKERS, rates.items()):
        known = numpy_of(value.expand(steps) if not value.dim() else value)
        shown = mark if len(known) <= 30 else ""
        axes.plot(range(len(known)), known, color=colour, lw=2, marker=shown, ms=4, label=name)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="step of the run", ylabel="learning rate")
    legend_below(figure, columns=3)
    return figure


def pictures_figure(inputs: Tensor, labels: Sequence[str], *, title: str) -> Figure:
    """Pictures in rows of ten under their labels, at most a hundred, each over its own range.

    Args:
        inputs: ``[n, channels, height, width]`` with 1 or 3 channels, of any range.
        labels: n.
        title: stands above.

    Raises:
        ValueError: no pictures, or another number of labels.
    """
    if (
        inputs.dim() != 4
        or inputs.shape[1] not in (1, 3)
        or len(labels) != len(inputs)
        or not labels
    ):
        raise ValueError(
            f"pictures_figure: [n, 1 or 3, height, width] and n labels are needed, got "
            f"{list(inputs.shape)} and {len(labels)}"
        )
    count = min(len(inputs), _MOST)
    columns = min(count, _COLUMNS)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(0.5 * columns + 0.3, 0.75 * rows + 0.6), layout="constrained", dpi=DPI)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, picture, label in zip(grid.flat, numpy_of(inputs[:count]), labels):
        low, high = float(np.nanmin(picture)), float(np.nanmax(picture))
        shown = (picture - low) / (high - low) if high > low else np.zeros_like(picture)
        axes.imshow(shown.transpose(1, 2, 0), cmap="gray" if len(picture) == 1 else None)
        axes.set_title(label, fontsize=9.5)
    figure.suptitle(title, fontsize=TITLE)
    return figure
