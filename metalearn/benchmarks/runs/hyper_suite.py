"""The suite ``hyper``: races at several K, with one outer loss and with many; table and figure.

Axes: K steps, R outer losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib.figure import Figure

from metalearn.benchmarks.runs.entrants import Race
from metalearn.benchmarks.runs.races import RACES
from metalearn.benchmarks.runs.rounds import Finish, raced
from metalearn.tracking.style import plain_axes

__all__ = ["Field", "hyper_figure", "hyper_race", "hyper_table", "left_out"]

Field = dict[int, dict[str, Finish]]
"""By K."""

_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#8A8A8A", "#000000")
_MARKERS = "os^vD"


def hyper_race(
    name: str,
    steps: Sequence[int],
    *,
    losses: int,
    rounds: int,
    keys: Sequence[str] | None = None,
    **numbers: Any,
) -> Field:
    """Race at every K; errors are ‖g − g'‖ / ‖g'‖ against the race's float64 reference.

    Args:
        name: ``"hyper"`` or ``"implicit"``.
        steps: every K.
        losses: R.
        rounds: how often each entrant runs.
        keys: of entrants, the reference among them; None is all.
        numbers: others of the problem.
    """
    field = {}
    for count in steps:
        given = {"steps": count, "losses": losses, **numbers}
        found = raced(name, given, rounds=rounds, keys=keys)
        exact = found["reference"].result
        for finish in found.values():
            if finish.result is not None and exact is not None:
                finish.error = float((finish.result - exact).norm() / exact.norm())
        field[count] = found
    return field


def hyper_table(name: str, field: Field) -> str:
    """Markdown: a row for each entrant, three columns for each K."""
    heads = [f"K = {count}: ms (÷ ours) | MB | error" for count in field]
    lines = ["| | " + " | ".join(heads) + " |", "| --- " * (3 * len(field) + 1) + "|"]
    for key in next(iter(field.values())):
        entrant = RACES[name].entrants[key]
        finishes = [found[key] for found in field.values()]
        if entrant.timed and not all(finish.failure for finish in finishes):
            cells = [_cells(finish) for finish in finishes]
            lines.append(f"| {entrant.title} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *left_out(RACES[name], list(field.values()))])


def _cells(finish: Finish) -> str:
    if finish.failure:
        return f"{finish.failure} | |"
    return (
        f"{1e3 * finish.seconds:.0f} ({finish.ratio:.2f}) | {finish.memory / 1e6:.0f} "
        f"| {finish.error:.0e}"
    )


def left_out(race: Race, results: Sequence[Mapping[str, Finish]]) -> list[str]:
    """A line for everything that gave nothing at all, and why."""
    lines = []
    for key in results[0]:
        reasons = [found[key].failure for found in results]
        if all(reasons):
            lines += ["", f"{race.entrants[key].title} did not run: {reasons[0]}."]
    return lines


def hyper_figure(name: str, field: Field, title: str) -> Figure:
    """Time and memory against K."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    chosen = next(iter(field.values()))
    for key, colour, marker in zip(chosen, cycle(_COLOURS), cycle(_MARKERS)):
        entrant = RACES[name].entrants[key]
        points = {count: found[key] for count, found in field.items()}
        points = {k: f for k, f in points.items() if not math.isnan(f.seconds)}
        if not points or not entrant.timed:
            continue
        how = {"color": colour, "marker": marker, "label": entrant.title}
        left.plot(list(points), [f.seconds for f in points.values()], **how)
        right.plot(list(points), [max(f.memory / 1e6, 0.1) for f in points.values()], **how)
    left.set(ylabel="processor time (s)")
    right.set(ylabel="growth of the peak (MB)")
    for axes in (left, right):
        axes.set(xlabel="steps K", xscale="log", yscale="log")
        axes.set_xticks(list(field), [str(count) for count in field])
        axes.minorticks_off()
        plain_axes(axes)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure
