"""What all figures share: colours, marks, a plain panel, a legend below it.

Axes: none.

Figures are built without pyplot: no window, no global state. Colours are those of Okabe and Ito,
which colour-blind readers tell apart.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

__all__ = [
    "BLUE",
    "CYCLE",
    "DPI",
    "FONT",
    "GREEN",
    "GREY",
    "MARKERS",
    "ORANGE",
    "PURPLE",
    "RED",
    "SKY",
    "TITLE",
    "WIDTH",
    "legend_below",
    "mark_lost",
    "numpy_of",
    "one_panel",
    "panels",
    "plain_axes",
    "quantiles_over_rows",
    "spans_decades",
]

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#6B6B6B"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
_HALF = 23  # characters of a label in half of the width
MARKERS = ("o", "s", "^", "D", "v", "P")
WIDTH, DPI, TITLE = 4.7, 150, 11
"""Inches, dots an inch, points: cards of TensorBoard show a figure 340 px wide and wider, where
letters of 9.5 points are 9.5 px high then."""
FONT = "DejaVu Sans"  # comes with matplotlib and has the two marks


def one_panel(title: str) -> tuple[Figure, Axes]:
    """A figure with one plain panel under its title."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    plain_axes(axes)
    axes.set_title(title, fontsize=TITLE)
    return figure, axes


def panels(title: str, count: int) -> tuple[Figure, list[Axes]]:
    """A figure with plain panels one below another: TensorBoard shows figures of one width."""
    figure = Figure(figsize=(WIDTH, 1.0 + 2.6 * count), layout="constrained", dpi=DPI)
    column = list(figure.subplots(count, 1, squeeze=False)[:, 0])
    for axes in column:
        plain_axes(axes)
    figure.suptitle(title, fontsize=TITLE)
    return figure, column


def plain_axes(axes: Axes) -> None:
    """Two spines and a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#DDDDDD", lw=0.7)
    axes.set_axisbelow(True)


def legend_below(figure: Figure, *, columns: int) -> None:
    """One legend for the first panel's labels, below the figure; none without labels."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if labels:
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=min(columns, 2 if max(map(len, labels)) <= _HALF else 1),
            frameon=False,
            fontsize=9.5,
        )


def mark_lost(axes: Axes, places: np.ndarray, *, total: int) -> None:
    """Crosses on the lower edge where values are not finite; nothing for no places."""
    if len(places):
        axes.plot(
            places,
            np.zeros(len(places)),
            "X",
            color=RED,
            ms=9,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            zorder=5,
            label=f"not finite ({len(places)} of {total})",
        )


def spans_decades(values: np.ndarray) -> bool:
    """Whether all values are above 0 and span more than a decade and a half."""
    return bool(len(values) and values.min() > 0 and values.max() > 30 * values.min())


def numpy_of(values: Tensor) -> np.ndarray:
    """Detached, on the CPU, in float64."""
    return values.detach().cpu().double().numpy()


def quantiles_over_rows(values: np.ndarray) -> np.ndarray:
    """Least, quartiles and largest over rows, NaN aside: ``[5, S]``; NaN where nothing is left."""
    found = np.full((5, values.shape[1]), np.nan)
    some = np.isfinite(values).any(axis=0)
    if some.any():
        found[:, some] = np.nanquantile(values[:, some], (0, 0.25, 0.5, 0.75, 1), axis=0)
    return found
