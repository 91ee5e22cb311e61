"""Figures of gradients: noise over training, numbers of layers.

Axes: S recorded steps, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from metalearn.tracking.style import (
    BLUE,
    CYCLE,
    DPI,
    GREY,
    MARKERS,
    TITLE,
    WIDTH,
    legend_below,
    numpy_of,
    one_panel,
    plain_axes,
    spans_decades,
)

__all__ = ["layers_figure", "noise_scale_figure"]


def noise_scale_figure(curves: Mapping[str, tuple[Tensor, Tensor]], *, title: str) -> Figure:
    """Noise scale divided by the number of units at hand, over training, one line a kind.

    Above 1 noise outweighs the gradient. Values that are not finite are gaps.

    Args:
        curves: kind of unit to steps ``[S]`` and ratios ``[S]``.
        title: stands above.

    Raises:
        ValueError: no curve, or shapes that differ.
    """
    shapes = [(list(steps.shape), list(values.shape)) for steps, values in curves.values()]
    if not shapes or any(one != other for one, other in shapes):
        raise ValueError(f"noise_scale_figure: steps [S] and ratios [S] are needed, got {shapes}")
    figure, axes = one_panel(title)
    for colour, mark, (name, (steps, values)) in zip(CYCLE, MARKERS, curves.items()):
        known = numpy_of(values)
        known = np.where(np.isfinite(known) & (known > 0), known, np.nan)
        shown = mark if len(known) <= 30 else ""
        label = name if np.isfinite(known).any() else f"{name}: no value"
        axes.plot(numpy_of(steps), known, color=colour, lw=2, marker=shown, ms=4, label=label)
    axes.axhline(1.0, color=GREY, ls="--", lw=1.2, label="noise = gradient")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_plain)
    axes.yaxis.set_minor_formatter(_plain)
    axes.set(xlabel="step", ylabel="noise scale / number at hand")
    legend_below(figure, columns=3)
    return figure


def _plain(value: float, position: float) -> str:
    """``0.2``, ``3``, ``50``; between these no text, lest labels stand in each other's way."""
    leading = value / 10 ** np.floor(np.log10(value)) if value > 0 else 0.0
    return f"{value:g}" if round(float(leading), 6) in (1.0, 2.0, 5.0) else ""


def layers_figure(names: Sequence[str], values: Tensor, *, label: str, title: str) -> Figure:
    """One bar for each layer; logarithmic where values span more than a decade and a half.

    Args:
        names: L.
        values: ``[L]``; what is not finite has no bar.
        label: what the values are.
        title: stands above.

    Raises:
        ValueError: another number of names.
    """
    if values.shape != (len(names),) or not len(names):
        raise ValueError(
            f"layers_figure: names and values [L] are needed, got {len(names)} and "
            f"{list(values.shape)}"
        )
    figure = Figure(figsize=(WIDTH, 1.2 + 0.26 * len(names)), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    plain_axes(axes)
    known = numpy_of(values)
    finite = known[np.isfinite(known)]
    axes.barh(range(len(names)), np.where(np.isfinite(known), known, 0), color=BLUE, height=0.7)
    for place in np.flatnonzero(~np.isfinite(known)):
        edge = axes.get_yaxis_transform()
        axes.text(
            0.01, float(place), "no value", transform=edge, va="center", color=GREY, fontsize=9
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    if spans_decades(finite):
        axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=TITLE)
    return figure
