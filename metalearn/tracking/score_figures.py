"""Figures of scores of training examples: against retraining, along the run, by themselves.

Axes: R targets, N training examples, M retrained subsets, K steps of a run, S places along it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from metalearn.tracking.attribution_figures import shortened
from metalearn.tracking.style import (
    BLUE,
    DPI,
    GREY,
    ORANGE,
    RED,
    TITLE,
    WIDTH,
    numpy_of,
    panels,
    plain_axes,
    quantiles_over_rows,
    spans_decades,
)

__all__ = ["foretold_figure", "run_smoothness_figure", "self_scores_figure"]

_COLUMNS = 2
_BINS = 40


def foretold_figure(
    predicted: Mapping[str, Tensor],
    outcomes: Tensor,
    correlations: Mapping[str, tuple[float, float]],
    *,
    title: str,
    outcome: str = "loss after retraining",
) -> Figure:
    """What scores said of retrained subsets against what became of them, one panel a method.

    A point is a target in a subset. Each target's own mean and spread are taken out of both axes,
    so that no target of a large loss outweighs the others; one whose outcomes are all equal has no
    points.

    Args:
        predicted: method to ``[R, M]``.
        outcomes: ``[M, R]``.
        correlations: method to the mean rank correlation over targets and half the width of its
            95 % interval, which may be NaN.
        title: stands above.
        outcome: what became of the targets, in words.

    Raises:
        ValueError: no method, or shapes that do not fit.
    """
    shapes = {tuple(values.shape) for values in predicted.values()}
    if shapes != {tuple(outcomes.shape[::-1])} or set(correlations) != set(predicted):
        raise ValueError(
            "foretold_figure: predictions [R, M], outcomes [M, R] and a correlation for each "
            f"method are needed, got {sorted(shapes)} and {list(outcomes.shape)}"
        )
    real = _standardised(numpy_of(outcomes.T))
    figure, grid = _grid(title, len(predicted), height=2.5)
    for axes, (name, values) in zip(grid, predicted.items()):
        foretold = _standardised(numpy_of(values))
        known = np.isfinite(real) & np.isfinite(foretold)
        axes.axline((0, 0), slope=1, color=GREY, lw=1.2, ls=(0, (4, 3)))
        seen = max(0.12, min(0.7, 250 / max(known.sum(), 1)))
        axes.plot(foretold[known], real[known], "o", color=BLUE, ms=3, mew=0, alpha=seen)
        mean, half = correlations[name]
        interval = f" ± {half:.2f}" if math.isfinite(half) else ""
        axes.set_title(f"{shortened(name)}\n{mean:.2f}{interval}", fontsize=11, parse_math=False)
        axes.set(xlim=(-3.6, 3.6), ylim=(-3.6, 3.6), aspect="equal", xticks=(-2, 0, 2))
        axes.set_yticks((-2, 0, 2))
    figure.supxlabel("loss foretold, in spreads of each target", fontsize=10.5)
    figure.supylabel(outcome, fontsize=10.5)
    return figure


def run_smoothness_figure(
    curvature: tuple[Tensor, Tensor] | None, walk_norms: Tensor | None, *, title: str
) -> Figure:
    """Whether gradients through a run can be trusted: curvature × rate, and sizes on the way back.

    Args:
        curvature: steps ``[S]``, and the largest eigenvalue of the Hessian times the rate there,
            ``[S]``; descent is stable below 2.
        walk_norms: ``[K + 1]`` or ``[R, K + 1]``, size of the gradient of a target's loss with
            respect to the parameters, from the end of the run back to its start.
        title: stands above.

    Raises:
        ValueError: neither, or shapes that do not fit.
    """
    if curvature is None and walk_norms is None:
        raise ValueError("run_smoothness_figure: curvature or walk_norms is needed")
    if curvature is not None and (curvature[0].dim() != 1 or len({*map(_shape, curvature)}) != 1):
        raise ValueError("run_smoothness_figure: steps [S] and as many products are needed")
    figure, column = panels(title, (curvature is not None) + (walk_norms is not None))
    if curvature is not None:
        _curvature_panel(column[0], *map(numpy_of, curvature))
    if walk_norms is not None:
        _walk_panel(column[-1], numpy_of(walk_norms))
    return figure


def self_scores_figure(scores: Mapping[str, Tensor], *, marked: int, title: str) -> Figure:
    """Histograms of scores of examples by themselves, one panel a method.

    Args:
        scores: method to ``[N]``; what is not finite is left out.
        marked: how many of the highest are marked.
        title: stands above.

    Raises:
        ValueError: no method.
    """
    if not scores:
        raise ValueError("self_scores_figure: at least one method is needed")
    figure, grid = _grid(title, len(scores), height=2.3)
    for axes, (name, values) in zip(grid, scores.items()):
        known = numpy_of(values)
        known = np.sort(known[np.isfinite(known)])
        lost = "" if len(known) == len(values) else f"\n{len(values) - len(known)} not finite"
        axes.set_title(f"{shortened(name)}{lost}", fontsize=11, parse_math=False)
        if len(known):
            counts, edges = np.histogram(known, bins=_BINS, range=_ends(known))
            axes.stairs(counts, edges, color=BLUE, fill=True)
            place = float(known[-min(marked, len(known))])
            axes.axvline(place, color=ORANGE, lw=1.8, ls="--")
            axes.set_yscale("symlog", linthresh=1)
            axes.set_ylim(0)
            axes.tick_params(labelsize=9.5)
            axes.locator_params(axis="x", nbins=4)
    figure.supxlabel(f"score (right of the dashes: the {marked} highest)", fontsize=10.5)
    figure.supylabel("examples", fontsize=10.5)
    return figure


def _ends(values: np.ndarray) -> tuple[float, float]:
    """The least and the largest of sorted values; wider where they differ by rounding alone."""
    low, high = float(values[0]), float(values[-1])
    size = max(abs(low), abs(high))
    if high - low > 1e-9 * size:
        return low, high
    half = size / 2 or 0.5
    return low - half, high + half


def _grid(title: str, count: int, *, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` plain panels in rows of two."""
    rows = -(-count // _COLUMNS)
    figure = Figure(figsize=(WIDTH, 1.0 + height * rows), layout="constrained", dpi=DPI)
    every = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for axes in every[count:]:
        axes.set_axis_off()
    for axes in every[:count]:
        plain_axes(axes)
    figure.suptitle(title, fontsize=TITLE, parse_math=False)
    return figure, every[:count]


def _curvature_panel(axes: Axes, steps: np.ndarray, products: np.ndarray) -> None:
    axes.plot(steps, products, "o-", color=BLUE, lw=2, ms=5)
    axes.axhline(2, color=RED, ls="--", lw=1.5)
    top = max(2.0, float(np.nanmax(products, initial=0.0, where=np.isfinite(products))))
    axes.set_ylim(min(0.0, float(np.nanmin(products, initial=0.0))), 1.15 * top)
    note = {"color": RED, "fontsize": 10, "va": "bottom", "ha": "right"}
    axes.text(
        0.99,
        2,
        "2: beyond it, plain descent is unstable",
        note,
        transform=axes.get_yaxis_transform(),
    )
    axes.set(xlabel="step of the run", ylabel="curvature × rate")


def _walk_panel(axes: Axes, norms: np.ndarray) -> None:
    rows = np.atleast_2d(norms)
    rows = np.where(np.isfinite(rows), rows, np.nan)
    before = np.arange(rows.shape[1])
    least, _, middle, _, largest = quantiles_over_rows(rows)
    if len(rows) > 1:
        label = "extremes over targets"
        axes.fill_between(before, least, largest, color=BLUE, alpha=0.2, lw=0, label=label)
    axes.plot(before, middle, color=BLUE, lw=2, label="median")
    if spans_decades(rows[np.isfinite(rows)]):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0)
    axes.invert_xaxis()
    if len(rows) > 1:
        axes.legend(frameon=False, fontsize=10)
    axes.set(xlabel="steps before the end of the run", ylabel="‖gradient‖ on the way back")


def _standardised(rows: np.ndarray) -> np.ndarray:
    """Each row without its mean, in units of its spread, both of its finite numbers.

    NaN where a number is not finite, or there is no spread.
    """
    known = np.isfinite(rows)
    count = np.maximum(known.sum(axis=1, keepdims=True), 1)
    centred = np.where(known, rows, 0)
    centred = np.where(known, centred - centred.sum(axis=1, keepdims=True) / count, 0)
    spread = np.sqrt(np.square(centred).sum(axis=1, keepdims=True) / count)
    found = np.full_like(centred, np.nan)
    np.divide(centred, spread, out=found, where=known & (spread > 0))
    return found


def _shape(values: Tensor) -> tuple[int, ...]:
    return tuple(values.shape)
