"""Curves of a run's records: what was trained beside what was validated, bands around both.

Axes: S records of a number, over steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metalearn.tracking.style import BLUE, GREEN, ORANGE, plain_axes, spans_decades

__all__ = ["Curve", "curve_figure", "curves_of", "drawable"]

_SIZE = (4.8, 3.1)  # inches: two stand side by side on a page
_LARGEST = 1e30  # beyond it axes overflow
_FEW = 30  # points that are marked
_ENDS = ("_low", "_high")
_LOOKS = {"train": (BLUE, "o", "training"), "validation": (ORANGE, "s", "validation")}
_LONGEST = 120  # characters of a name


class Curve(NamedTuple):
    """A number over the steps of a run; ``low`` and ``high`` are NaN where there is no band."""

    steps: np.ndarray
    """``[S]``, as the next three."""
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curves_of(records: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, Curve]]:
    """All curves of a run: name to part to the curve.

    What is recorded as ``train/loss`` and ``validation/loss`` are the parts ``"train"`` and
    ``"validation"`` of ``"loss"``; any other ``<room>/<name>`` has its whole name, and one part
    ``""``. Numbers named ``<name>_low`` and ``<name>_high`` are the band of ``<name>``. Left out
    are numbers that were recorded once, names without a room, and what is no name to show.

    Args:
        records: objects of ``metrics.jsonl``, each with its ``"step"``; None is not finite.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for name, value in record.items():
            if "/" in name and len(name) <= _LONGEST and name.isprintable():
                known = math.nan if value is None else float(value)
                found.setdefault(name, []).append((float(record["step"] or 0), known))
    ends = {n + end for n in found for end in _ENDS if n + end in found}
    curves: dict[str, dict[str, Curve]] = {}
    for name, points in found.items():
        if name in ends or len({step for step, _ in points}) < 2:
            continue
        by_step = dict(points)  # the last of a step
        steps = sorted(by_step)
        lines = [by_step, *(dict(found.get(name + end, ())) for end in _ENDS)]
        arrays = [np.array([line.get(step, math.nan) for step in steps]) for line in lines]
        part, _, short = name.partition("/")
        key, part = (short, part) if part in _LOOKS else (name, "")
        curves.setdefault(key, {})[part] = Curve(np.array(steps), *arrays)
    return curves


def curve_figure(
    title: str, parts: Mapping[str, Curve], *, percent: bool = False, linear: bool = False
) -> Figure:
    """A panel with a line, and its band, for each part of a run that has this number.

    Args:
        title: stands above.
        parts: by their names, as ``"train"``.
        percent: whether it is a share, which is drawn in per cent.
        linear: whether the scale is that of the numbers however far they reach, as of a rate that
            ends near 0.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    plain_axes(axes)
    everything = np.concatenate([a for c in parts.values() for a in (c.values, c.low, c.high)])
    finite = everything[np.isfinite(everything) & (np.abs(everything) < _LARGEST)]
    if spans_decades(finite) and not percent and not linear:
        axes.set_yscale("log")
    for part, curve in parts.items():
        _draw(axes, part, curve, 100.0 if percent else 1.0)
    words = f"{title} (%)" if percent else title
    axes.set_title(words, fontsize=11, loc="left", parse_math=False)
    axes.set_xlabel("step", fontsize=10)
    if any(part in _LOOKS for part in parts):
        axes.legend(frameon=False, fontsize=10)
    return figure


def _draw(axes: Axes, part: str, curve: Curve, factor: float) -> None:
    colour, mark, label = _LOOKS.get(part, (GREEN, "o", ""))
    points, low, high = (drawable(factor * v) for v in (curve.values, curve.low, curve.high))
    few = int(np.isfinite(points).sum()) <= _FEW
    axes.plot(
        curve.steps, points, color=colour, lw=1.6, marker=mark if few else "", ms=4,
        label=label or None,
    )  # fmt: skip
    if np.isfinite(low).any():
        axes.fill_between(curve.steps, low, high, color=colour, alpha=0.18, lw=0)
    lost = curve.steps[~np.isfinite(curve.values)]
    if len(lost):
        edge = axes.get_xaxis_transform()
        axes.plot(lost, np.zeros(len(lost)), "X", color="#D55E00", ms=8, transform=edge,
                  clip_on=False, zorder=5)  # fmt: skip


def drawable(values: np.ndarray) -> np.ndarray:
    """NaN in place of what axes cannot hold."""
    return np.where(np.abs(values) < _LARGEST, values, math.nan)
