"""A Markdown table and figures of what was measured."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from metalearn.benchmarks.contestants import CONTESTANTS
from metalearn.benchmarks.measure import Timing
from metalearn.benchmarks.workloads import WORKLOADS

__all__ = ["curve_figure", "race_figure", "race_table"]

_BLUE, _GREY, _RED = "#0072B2", "#8A8A8A", "#D55E00"
_STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "v"))
_MARKERS = ("D", "P", "X", "*")
_WRONG = 1e-6  # relative error in float64 beyond which a gradient is called wrong
_WIDE = 50  # longest bar ÷ shortest, from where on a scale is logarithmic
_OURS = ("batched", "compiled", "mixed", "implicit", "first_order", "first_order_compiled")


def race_table(results: Mapping[str, Sequence[Timing]]) -> str:
    """A Markdown table for every workload."""
    parts = []
    for name, timings in results.items():
        lines = [
            f"**{name}**: {WORKLOADS[name].title}",
            "",
            "| | ms | ÷ floor | ÷ ours | peak MB | error, float64 | error, float32 |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for t in sorted(timings, key=lambda t: (not _second(t), _failed(t), t.milliseconds)):
            ours = "" if math.isnan(t.ours) else f"{t.ours:.2f}"
            memory = "" if math.isnan(t.memory) else f"{t.memory / 1e6:.0f}"
            lines.append(
                f"| {CONTESTANTS[t.contestant].title} | {_short(t.milliseconds)} | {t.floors:.2f} "
                f"| {ours} | {memory} | {t.error:.0e} "
                f"| {t.rounding:.0e} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def race_figure(results: Mapping[str, Sequence[Timing]]) -> Figure:
    """Time ÷ floor, a panel for each workload: second order above first, the fastest on top.

    Hatched are wrong gradients. Drawn for a page 830 px wide or more.
    """
    columns = min(2, len(results))
    rows = math.ceil(len(results) / columns)
    bars = max(map(len, results.values()), default=1)
    figure = Figure(figsize=(5 * columns, (1.5 + 0.24 * bars) * rows + 0.5), layout="constrained")
    figure.set_dpi(150)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    for axes, (name, timings) in zip(panels, results.items()):
        _race_panel(axes, f"{name}: {WORKLOADS[name].title}", timings)
    looks: dict[str, dict[str, Any]] = {
        "ours": {"color": _BLUE},
        "other engines and libraries": {"color": _GREY},
        "wrong gradient": {"facecolor": _RED, "hatch": "//", "edgecolor": "white"},
    }
    marks = [Patch(label=label, **look) for label, look in looks.items()]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    return figure


def _race_panel(axes: Axes, title: str, timings: Sequence[Timing]) -> None:
    """A bar for each that finished; a gap parts second order from first."""
    finished = [t for t in timings if not _failed(t)]
    first, second = (
        sorted((t for t in finished if _second(t) is kind), key=lambda t: -t.floors)
        for kind in (False, True)
    )
    gap = 0.6 if first and second else 0.0
    places = [*range(len(first)), *(len(first) + gap + n for n in range(len(second)))]
    for place, t in zip(places, [*first, *second]):
        wrong = t.error > _WRONG
        colour = _RED if wrong else _BLUE if t.contestant in _OURS else _GREY
        axes.barh(place, t.floors, color=colour, hatch="//" if wrong else None, edgecolor="white")
        note = f" {t.floors:.1f}" + (" (wrong gradient)" if wrong else "")
        axes.text(t.floors, place, note, va="center", fontsize=9)
    axes.set_yticks(places, [CONTESTANTS[t.contestant].title for t in (*first, *second)])
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    noted = [2 * t.floors for t in finished if t.error > _WRONG]  # with room for words
    least, most = (end(t.floors for t in finished) for end in (min, max))
    wide = 0 < _WIDE * least < most  # short bars would not be seen beside long ones
    if wide:
        axes.set_xscale("log")
    axes.set_xlim(min(0.5, least / 2) if wide else 0, max((3 if wide else 1.3) * most, *noted, 0))
    axes.set_ylim(-0.7, places[-1] + 0.7)
    scale = ", on a logarithmic scale" if wide else ""
    axes.set_xlabel(f"time ÷ matrix products alone{scale}", fontsize=9.5)
    axes.set_title(textwrap.fill(title, 48), fontsize=10.5, loc="right")  # over the names too
    axes.tick_params(labelsize=9.5)
    axes.spines[["top", "right"]].set_visible(False)


def curve_figure(
    workload: str, measured: Mapping[str, Mapping[int, Mapping[str, float]]]
) -> Figure:
    """Peak memory and time against inner steps; ours are coloured, others grey and dashed."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained", dpi=150)
    for axes, (quantity, label, scale) in zip(
        figure.subplots(1, 2), (("memory", "peak memory (MB)", 1e6), ("seconds", "time (s)", 1.0))
    ):
        ours, peers = cycle(_STYLES), cycle(_MARKERS)
        for name, points in measured.items():
            values = [point[quantity] / scale for point in points.values()]
            own = name in _OURS
            colour, marker = next(ours) if own else (_GREY, next(peers))
            look: dict[str, Any] = {"color": colour, "marker": marker, "ls": "-" if own else "--"}
            axes.plot(list(points), values, label=CONTESTANTS[name].title, **look)
        axes.set(xscale="log", yscale="log", xlabel="inner steps", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    where: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "fontsize": 10}
    figure.legend(handles, labels, ncols=3, **where)
    figure.suptitle(WORKLOADS[workload].title.rsplit(",", 1)[0], fontsize=11)
    return figure


def _second(timing: Timing) -> bool:
    return CONTESTANTS[timing.contestant].second_order


def _failed(timing: Timing) -> bool:
    return math.isnan(timing.milliseconds)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.2f}"
