"""A Markdown table and figures of what was measured."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from metalearn.benchmarks.contestants import CONTESTANTS
from metalearn.benchmarks.measure import Timing
from metalearn.benchmarks.workloads import WORKLOADS

__all__ = ["curve_figure", "race_figure", "race_table"]

_BLUE, _GREY, _RED = "#0072B2", "#8A8A8A", "#D55E00"
_STYLES = (
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "v"), ("#8A8A8A", "D"),
)  # fmt: skip
_WRONG = 1e-6  # relative error in float64 beyond which a gradient is called wrong
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
    """Time ÷ floor, one panel for each workload, the fastest on top; hatched: wrong gradients.

    Drawn for a page 960 px wide.
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
        finished = [t for t in timings if not _failed(t)]
        ordered = sorted(finished, key=lambda t: -t.milliseconds)
        for row, t in enumerate(ordered):
            wrong = t.error > _WRONG
            colour = _RED if wrong else _BLUE if t.contestant in _OURS else _GREY
            axes.barh(row, t.floors, color=colour, hatch="//" if wrong else None, edgecolor="white")
            note = f" {t.floors:.1f}" + (" (wrong gradient)" if wrong else "")
            axes.text(t.floors, row, note, va="center", fontsize=9)
        axes.set_yticks(range(len(ordered)), [CONTESTANTS[t.contestant].title for t in ordered])
        axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
        axes.set_xlim(0, 1.3 * max(t.floors for t in finished))
        axes.set_xlabel("time ÷ matrix products alone")
        title = textwrap.fill(f"{name}: {WORKLOADS[name].title}", 52)
        axes.set_title(title, fontsize=10.5, loc="left")
        axes.tick_params(labelsize=9.5)
        axes.spines[["top", "right"]].set_visible(False)
    looks: dict[str, dict[str, Any]] = {
        "ours": {"color": _BLUE},
        "other engines and libraries": {"color": _GREY},
        "wrong gradient": {"facecolor": _RED, "hatch": "//", "edgecolor": "white"},
    }
    marks = [Patch(label=label, **look) for label, look in looks.items()]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    return figure


def curve_figure(
    workload: str, measured: Mapping[str, Mapping[int, Mapping[str, float]]]
) -> Figure:
    """Peak memory and time against inner steps."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained", dpi=150)
    for axes, (quantity, label, scale) in zip(
        figure.subplots(1, 2), (("memory", "peak memory (MB)", 1e6), ("seconds", "time (s)", 1.0))
    ):
        for (name, points), (colour, marker) in zip(measured.items(), cycle(_STYLES)):
            values = [point[quantity] / scale for point in points.values()]
            title = CONTESTANTS[name].title
            axes.plot(list(points), values, color=colour, marker=marker, label=title)
        axes.set(xscale="log", yscale="log", xlabel="inner steps", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    look: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "fontsize": 10}
    figure.legend(handles, labels, ncols=3, **look)
    figure.suptitle(WORKLOADS[workload].title.rsplit(",", 1)[0], fontsize=11)
    return figure


def _second(timing: Timing) -> bool:
    return CONTESTANTS[timing.contestant].second_order


def _failed(timing: Timing) -> bool:
    return math.isnan(timing.milliseconds)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.2f}"
