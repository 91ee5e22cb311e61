"""A number of several runs over their steps, one above another in the same panel.

Axes: S records of a number.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from metalearn.tracking.run_curves import Curve, drawable
from metalearn.tracking.style import CYCLE, MARKERS, mark_lost, plain_axes, spans_decades

__all__ = ["MOST_LINES", "OverlaidRow", "overlaid_figure"]

MOST_LINES = 2 * len(CYCLE)
"""Rows that can be told apart: six colours that colour-blind readers tell apart, each with a marked
solid line and a marked dashed one."""
_WIDTH, _PANEL, _LEGEND_LINE = 5.4, 3.1, 0.19  # inches
_MARKS = 9  # of a line, so that it is known where lines cross
_LONGEST = 54  # characters of a line of the legend
_MOST_LEGEND_LINES = 2


class OverlaidRow(NamedTuple):
    """What one row of a comparison adds to a panel."""

    place: int
    """Of the row, from 0: it decides colour, mark and dashes, alike in all panels."""
    label: str
    curves: Sequence[Curve]
    """Of its runs; seeds look alike."""


def overlaid_figure(
    title: str, rows: Sequence[OverlaidRow], *, percent: bool = False, linear: bool = False
) -> Figure:
    """One panel with a line for each run, and a legend with an entry for each row.

    Bands are left out, as they would hide each other.

    Args:
        title: stands above.
        rows: with places below `MOST_LINES`.
        percent: whether it is a share, which is drawn in per cent.
        linear: whether the scale is that of the numbers however far they reach.

    Raises:
        ValueError: a place that no line can be told by.
    """
    if any(not 0 <= row.place < MOST_LINES for row in rows):
        raise ValueError(f"overlaid_figure: places of 0 to {MOST_LINES - 1} are needed")
    labels = [_wrapped(row.label) for row in rows]
    height = _PANEL + _LEGEND_LINE * sum(label.count("\n") + 1 for label in labels)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots()
    plain_axes(axes)
    factor, lost, total, seen = 100.0 if percent else 1.0, [], 0, []
    for row in rows:
        colour, mark, dash = _look(row.place)
        for curve in row.curves:
            values = drawable(factor * curve.values)
            every = max(1, math.ceil(len(values) / _MARKS))
            axes.plot(
                curve.steps, values, color=colour, ls=dash, lw=1.7, marker=mark, ms=5,
                mfc="white" if row.place >= len(CYCLE) else colour,
                markevery=(row.place * every // MOST_LINES, every),
            )  # fmt: skip
            seen.append(values[np.isfinite(values)])
            lost.append(curve.steps[~np.isfinite(curve.values)])
            total += len(values)
    if spans_decades(np.concatenate(seen or [np.zeros(0)])) and not percent and not linear:
        axes.set_yscale("log")
    places = np.concatenate(lost or [np.zeros(0)])
    mark_lost(axes, places, total=total)
    axes.set_title(f"{title} (%)" if percent else title, fontsize=12, loc="left", parse_math=False)
    axes.set_xlabel("step", fontsize=11)
    axes.tick_params(labelsize=10.5)
    handles = [_handle(row.place, label) for row, label in zip(rows, labels)]
    handles += [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    legend = figure.legend(
        handles=handles, loc="outside lower left", frameon=False, fontsize=10, handlelength=3
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _look(place: int) -> tuple[str, str, str | tuple[int, tuple[float, float]]]:
    turn = place % len(CYCLE)
    return CYCLE[turn], MARKERS[turn], "-" if place < len(CYCLE) else (0, (4, 1.6))


def _handle(place: int, label: str) -> Line2D:
    colour, mark, dash = _look(place)
    inside = "white" if place >= len(CYCLE) else colour
    return Line2D([], [], color=colour, ls=dash, marker=mark, ms=5, mfc=inside, label=label)


def _wrapped(label: str) -> str:
    """In at most two lines."""
    lines = textwrap.wrap(label, _LONGEST) or [""]
    if len(lines) > _MOST_LEGEND_LINES:
        last = lines[_MOST_LEGEND_LINES - 1]
        lines = [*lines[: _MOST_LEGEND_LINES - 1], f"{last[: _LONGEST - 1]}…"]
    return "\n".join(lines)
