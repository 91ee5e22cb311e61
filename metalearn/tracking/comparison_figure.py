"""Runs side by side as dots with their intervals, one row for each.

Axes: R rows, S seeds.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from metalearn.tracking.style import BLUE, FONT, GREY, ORANGE, plain_axes, spans_decades

__all__ = ["ComparedNumber", "comparison_figure"]

_PANEL, _LEAST = 3.4, 7.0  # inches of width
_DOTS, _LINE, _CHARACTER = 0.3, 0.17, 0.076  # inches: of dots, of a line of a label, of a letter
_LARGEST = 1e30  # beyond it axes overflow
_LOOKS: dict[str, dict[str, Any]] = {
    "seeds": {"color": BLUE, "marker": "o", "ls": "-"},
    "tests": {"color": ORANGE, "marker": "s", "ls": (0, (3, 1.5))},
    "": {"color": GREY, "marker": "D", "ls": "none", "mfc": "none"},
}
_SEED: dict[str, Any] = {"color": GREY, "marker": "o", "ms": 4.5, "ls": "none", "mew": 0}
_MEANINGS = {
    "seeds": "mean over seeds, its 95 % interval",
    "tests": "one run, 95 % interval over what it was tested on",
    "": "one run, no interval known",
}


class ComparedNumber(NamedTuple):
    """A number of a row."""

    mean: float
    low: float
    """Of the 95 % interval; NaN where there is none."""
    high: float
    over: str
    """What the interval is over: ``"seeds"``, ``"tests"``; ``""`` where there is none."""
    values: Sequence[float] = ()
    """``[S]``, of the runs; drawn where there are several."""


def comparison_figure(
    rows: Sequence[str],
    numbers: Mapping[str, Sequence[ComparedNumber | None]],
    *,
    title: str,
    percent: Sequence[str] = (),
) -> Figure:
    """Dots with intervals, a row above another as in a table, and a panel for each number.

    Args:
        rows: ``[R]``, what each is, which stands in full above its dots.
        numbers: name to ``[R]``; a dash stands for None, and words for what cannot be drawn.
        title: stands above.
        percent: names of numbers that are shares, drawn in per cent.

    Raises:
        ValueError: no row, no number, or not as many as rows.
    """
    if not rows or not numbers or any(len(found) != len(rows) for found in numbers.values()):
        raise ValueError("comparison_figure: rows [R] and numbers [R] by name are needed")
    width = max(_LEAST, _PANEL * len(numbers))
    labels = [textwrap.wrap(row, int((width - 0.3) / _CHARACTER)) or [""] for row in rows]
    heights = [_DOTS + _LINE * len(lines) for lines in labels]
    titles = textwrap.wrap(title, int((width - 0.3) / (_CHARACTER * 1.15)))
    whole = sum(heights) + 1.15 + 0.24 * len(titles) + 0.2 * len(_kinds(numbers))
    figure = Figure(figsize=(width, whole), layout="constrained")
    column = list(figure.subplots(1, len(numbers), squeeze=False, sharey=True)[0])
    tops = [sum(heights[:index]) for index in range(len(rows))]
    places = [top + height - _DOTS / 2 for top, height in zip(tops, heights)]
    cut = False
    for axes, (name, found) in zip(column, numbers.items()):
        cut |= _draw(axes, name, found, places, name in percent)
        for top in tops[1:]:
            axes.axhline(top, color="#DDDDDD", lw=0.7)
    column[0].set_ylim(sum(heights), 0)
    column[0].set_zorder(1)  # the labels go on over the other panels
    for top, lines in zip(tops, labels):
        column[0].annotate(
            "\n".join(lines), (0, top), (2, -3), xycoords=column[0].get_yaxis_transform(),
            textcoords="offset points", va="top", fontsize=9.5, family=FONT, parse_math=False,
            annotation_clip=False, in_layout=False,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    figure.suptitle("\n".join(titles), fontsize=12, parse_math=False)
    _legend(figure, numbers, cut)
    return figure


def _draw(
    axes: Axes,
    name: str,
    found: Sequence[ComparedNumber | None],
    places: Sequence[float],
    in_percent: bool,
) -> bool:
    """Draw a panel; gives whether an interval goes on beyond it."""
    plain_axes(axes)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", left=False, labelleft=False)
    axes.spines["left"].set_visible(False)
    axes.patch.set_visible(False)
    factor = 100.0 if in_percent else 1.0
    shown = [None if number is None else _scaled(number, factor) for number in found]
    cut = False
    low, high = _limits(axes, [number for number in shown if number is not None])
    for number, place in zip(shown, places):
        if number is None or not _drawable(number.mean):
            text = "–" if number is None else "not finite, or too large"
            x = axes.get_yaxis_transform()
            axes.text(0.03, place, text, transform=x, va="center", color=GREY, fontsize=9.5)
            continue
        look = _LOOKS[number.over]
        if _drawable(number.low) and _drawable(number.high):
            ends = (max(number.low, low), min(number.high, high))
            axes.plot(ends, (place, place), color=look["color"], ls=look["ls"], lw=2)
            for end, inside, arrow in zip(ends, (number.low >= low, number.high <= high), "<>"):
                mark = "|" if inside else arrow
                axes.plot(end, place, mark, color=look["color"], ms=8, mew=2, clip_on=inside)
                cut |= not inside
        axes.plot(number.mean, place, ms=7, zorder=3, **(look | {"ls": "none"}))
        if len(number.values) > 1:
            axes.plot(number.values, [place] * len(number.values), zorder=4, **_SEED)
    axes.set_xlabel(f"{name} (%)" if in_percent else name, parse_math=False)
    return cut


def _scaled(number: ComparedNumber, factor: float) -> ComparedNumber:
    mean, low, high, over, values = number
    return ComparedNumber(
        factor * mean, factor * low, factor * high, over, [factor * value for value in values]
    )


def _limits(axes: Axes, numbers: Sequence[ComparedNumber]) -> tuple[float, float]:
    """Give a panel its scale and limits: all of what was measured, and of intervals what fits.

    One run far from the others, or an interval over two seeds, would leave no room for the rest.
    """
    points = [value for n in numbers for value in (n.mean, *n.values) if _drawable(value)]
    ends = [end for n in numbers for end in (n.low, n.high) if _drawable(end)]
    if not points:
        axes.set_xticks([])
        return 0.0, 1.0
    least, most = min(points), max(points)
    if spans_decades(np.array(points)) and least > 1 / _LARGEST:
        axes.set_xscale("log")
        room = (most / least) ** 0.25
        low, high = least / room, most * room
    else:
        room = most - least or abs(most) or 1.0
        low = max(min([least, *ends]), least - 2 * room) - 0.08 * room
        high = min(max([most, *ends]), most + 2 * room) + 0.08 * room
        axes.locator_params(axis="x", nbins=5)
    axes.set_xlim(low, high)
    return low, high


def _drawable(value: float) -> bool:
    return math.isfinite(value) and abs(value) < _LARGEST


def _kinds(numbers: Mapping[str, Sequence[ComparedNumber | None]]) -> list[str]:
    there = {number.over for found in numbers.values() for number in found if number is not None}
    return [kind for kind in _LOOKS if kind in there]


def _legend(
    figure: Figure, numbers: Mapping[str, Sequence[ComparedNumber | None]], cut: bool
) -> None:
    marks = [Line2D([], [], lw=2, ms=7, label=_MEANINGS[k], **_LOOKS[k]) for k in _kinds(numbers)]
    several = any(n is not None and len(n.values) > 1 for each in numbers.values() for n in each)
    if several:
        marks.append(Line2D([], [], label="each seed", **_SEED))
    if cut:
        arrow: dict[str, Any] = {"color": GREY, "marker": ">", "ms": 7, "ls": "none"}
        marks.append(Line2D([], [], label="the interval goes on", **arrow))
    if marks:
        figure.legend(handles=marks, loc="outside lower center", frameon=False, fontsize=9.5)
