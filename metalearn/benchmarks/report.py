"""A Markdown table and figures of what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.figure import Figure

from metalearn.benchmarks.contestants import CONTESTANTS
from metalearn.benchmarks.measure import Timing
from metalearn.benchmarks.workloads import WORKLOADS

__all__ = ["curve_figure", "race_figure", "race_table"]

_BLUE, _GREY, _RED = "#0072B2", "#8A8A8A", "#D55E00"
_STYLES = (
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "v"), ("#8A8A8A", "D"),
)  # fmt: skip
_WRONG = 1e-6  # relative error in float64 beyond which a gradient is called wrong
_OURS = ("batched", "mixed", "first_order")


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
    """Time ÷ floor, one panel for each workload; bars of wrong gradients are hatched."""
    columns = min(2, len(results))
    rows = math.ceil(len(results) / columns)
    figure = Figure(figsize=(6.4 * columns, 3.4 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    for axes, (name, timings) in zip(panels, results.items()):
        finished = [t for t in timings if not _failed(t)]
        ordered = sorted(finished, key=lambda t: (_second(t), -t.milliseconds))
        for row, t in enumerate(ordered):
            wrong = t.error > _WRONG
            colour = _RED if wrong else _BLUE if t.contestant in _OURS else _GREY
            axes.barh(row, t.floors, color=colour, hatch="//" if wrong else None, edgecolor="white")
            note = f" {t.floors:.1f}" + (" (wrong gradient)" if wrong else "")
            axes.text(t.floors, row, note, va="center", fontsize=8)
        axes.set_yticks(range(len(ordered)), [CONTESTANTS[t.contestant].title for t in ordered])
        axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
        axes.set_xlim(0, 1.3 * max(t.floors for t in finished))
        axes.set_xlabel("time ÷ matrix products alone")
        axes.set_title(f"{name}: {WORKLOADS[name].title}", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def curve_figure(
    workload: str, measured: Mapping[str, Mapping[int, Mapping[str, float]]]
) -> Figure:
    """Peak memory and time against inner steps."""
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
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
    axes.legend(frameon=False, fontsize=8)
    figure.suptitle(WORKLOADS[workload].title.rsplit(",", 1)[0], fontsize=10)
    return figure


def _second(timing: Timing) -> bool:
    return CONTESTANTS[timing.contestant].second_order


def _failed(timing: Timing) -> bool:
    return math.isnan(timing.milliseconds)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.2f}"
