"""Figures of many curves at once, of a matrix, of a spectrum.

Axes: M curves (members), S recorded steps, K rows of a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from metalearn.tracking.style import (
    BLUE,
    DPI,
    GREY,
    ORANGE,
    TITLE,
    WIDTH,
    legend_below,
    numpy_of,
    one_panel,
    quantiles_over_rows,
    spans_decades,
)

__all__ = ["matrix_figure", "quantile_bands_figure", "spectrum_figure"]

_WRITTEN = 6  # the largest matrix whose entries are written out
_QUARTILES = 4  # the fewest curves whose quartiles say more than their extremes


def quantile_bands_figure(
    steps: Tensor,
    values: Tensor,
    *,
    ylabel: str,
    title: str,
    xlabel: str = "step",
    of: str = "members",
    lines: bool = False,
    count: int | None = None,
    linear: bool = False,
) -> Figure:
    """Median, quartiles and extremes of M curves, instead of M tangled lines.

    Values that are not finite (of a member that diverged) are left out step by step; the legend
    says of how many curves. The axis is logarithmic where values above 0 span more than a decade
    and a half.

    Args:
        steps: ``[S]``, in order.
        values: ``[M, S]``.
        ylabel: what the values are, and their unit.
        title: stands above.
        xlabel: what the steps are.
        of: what the curves belong to, for the legend.
        lines: draw each curve as well, thin.
        count: of curves, for the legend, where ``values`` are their quantiles; None is M.
        linear: keep the axis linear whatever the values span, as of shares.

    Raises:
        ValueError: shapes that do not fit.
    """
    if values.ndim != 2 or not len(values) or steps.shape != values.shape[1:]:
        raise ValueError(
            "quantile_bands_figure: steps [S] and values [M, S] are needed, "
            f"got {list(steps.shape)} and {list(values.shape)}"
        )
    figure, axes = one_panel(title)
    x, y = numpy_of(steps), numpy_of(values)
    y = np.where(np.isfinite(y), y, np.nan)
    low, first, median, third, high = quantiles_over_rows(y)
    if len(y) > 1:
        axes.fill_between(x, low, high, color=BLUE, alpha=0.15, lw=0, label="extremes")
    if len(y) >= _QUARTILES:
        axes.fill_between(x, first, third, color=BLUE, alpha=0.3, lw=0, label="quartiles")
    if lines and len(y) > 1:
        for index, row in enumerate(y):
            label = f"single {of}" if not index else None
            axes.plot(x, row, color=GREY, lw=0.7, alpha=0.7, label=label)
    mark = "o" if len(x) == 1 else ""
    label = f"median of {count or len(y)} {of}" if len(y) > 1 else None
    axes.plot(x, median, color=BLUE, lw=2.2, marker=mark, label=label)
    lost = int(np.isnan(y).any(axis=1).sum())
    if lost:
        axes.plot([], [], " ", label=f"{lost} not finite somewhere")
    if spans_decades(y[np.isfinite(y)]) and not linear:
        axes.set_yscale("log")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    legend_below(figure, columns=3)
    return figure


def matrix_figure(
    matrix: Tensor,
    *,
    title: str,
    label: str,
    names: Sequence[str] | None = None,
    limits: tuple[float, float] = (-1.0, 1.0),
) -> Figure:
    """A square matrix as a picture, red below the middle of the limits and blue above it.

    Entries that are not finite are grey. Up to 6 rows the entries are written out.

    Args:
        matrix: ``[K, K]``, such as cosines between members' gradients.
        title: stands above.
        label: of the colour bar.
        names: of the rows; None numbers them from 0.
        limits: values of the darkest colours.

    Raises:
        ValueError: not a square matrix, or another number of names.
    """
    size = len(matrix) if matrix.ndim else 0
    if matrix.shape != (size, size) or not size or (names is not None and len(names) != size):
        raise ValueError(
            "matrix_figure: a matrix [K, K] and K names are needed, got "
            f"{list(matrix.shape)} and {None if names is None else len(names)} names"
        )
    values = numpy_of(matrix)
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    axes.set_facecolor("#BBBBBB")
    picture = axes.imshow(values, cmap="RdBu", vmin=limits[0], vmax=limits[1])
    figure.colorbar(picture, ax=axes, label=label, shrink=0.9)
    if names is not None and size <= 4 * _WRITTEN:
        turn = 0 if max(map(len, names)) * size <= 40 else 90
        axes.set_xticks(range(size), names, rotation=turn)
        axes.set_yticks(range(size), names)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if size <= _WRITTEN:
        middle, reach = sum(limits) / 2, (limits[1] - limits[0]) / 2
        for (row, column), value in np.ndenumerate(values):
            dark = abs(value - middle) > 0.6 * reach
            style = {"ha": "center", "va": "center", "fontsize": 9}
            axes.text(column, row, f"{value:.2f}", style, color="white" if dark else "black")
    axes.set_title(title, fontsize=TITLE)
    return figure


def spectrum_figure(grid: Tensor, density: Tensor, *, title: str) -> Figure:
    """A spectral density against the size of the eigenvalue, both axes logarithmic.

    Negative eigenvalues are a line of their own, at their size. What lies below 10⁻⁸ of the highest
    density is left out: there a smoothed density is rounding alone.

    Args:
        grid: eigenvalues ``[S]``, in order.
        density: ``[S]``, at least 0.
        title: stands above.

    Raises:
        ValueError: shapes that differ.
    """
    if grid.ndim != 1 or grid.shape != density.shape or not len(grid):
        raise ValueError(
            "spectrum_figure: a grid [S] and a density [S] are needed, "
            f"got {list(grid.shape)} and {list(density.shape)}"
        )
    figure, axes = one_panel(title)
    x, y = numpy_of(grid), numpy_of(density)
    finite = y[np.isfinite(y)]
    y = np.where(y > 1e-8 * finite.max(initial=0.0), y, np.nan)
    sides = (("λ > 0", x > 0, BLUE, "-"), ("λ < 0, at |λ|", x < 0, ORANGE, "--"))
    for name, side, colour, style in sides:
        if np.isfinite(y[side]).any():
            axes.plot(np.abs(x[side]), y[side], color=colour, ls=style, lw=2, label=name)
    if axes.lines:
        axes.set(xscale="log", yscale="log")
    axes.set(xlabel="size of the eigenvalue |λ|", ylabel="spectral density")
    legend_below(figure, columns=2)
    return figure
