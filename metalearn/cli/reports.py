"""Test scores as JSON, as a table, and as the few numbers that runs are compared by.

Axes: M members, K inner steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

from metalearn.trainers import EnsembleTest, TestReport

__all__ = ["Report", "headline", "member_headlines", "plain_report", "report_table"]

Report = TestReport | EnsembleTest

_COLUMNS = ("accuracy", "nll", "brier", "ece")


@singledispatch
def plain_report(report: Report) -> dict[str, Any]:
    """A report as JSON."""
    raise TypeError(type(report))


@singledispatch
def headline(report: Report) -> dict[str, float]:
    """The numbers by which runs are compared."""
    raise TypeError(type(report))


@singledispatch
def _table(report: Report, name: str) -> list[str]:
    raise TypeError(type(report))


def report_table(reports: Mapping[str, Report]) -> str:
    """All reports in words, one after another."""
    return "\n".join(line for name, report in reports.items() for line in _table(report, name))


def member_headlines(report: Report) -> list[dict[str, float]]:
    """The same of each member."""
    assert isinstance(report, EnsembleTest)
    count = len(report.report.members.accuracy)
    return [
        {f"test/{k}": v for k, v in report.report.member(index).items() if k in _COLUMNS}
        for index in range(count)
    ]


@plain_report.register
def _(report: TestReport) -> dict[str, Any]:
    """Mean and half-width of the 95 % interval at each inner step."""
    plain: dict[str, Any] = {"tasks": report.tasks}
    for name, values in (("loss", report.losses), ("accuracy", report.accuracies)):
        if values is not None:
            plain[name] = [
                {"inner_step": k, "mean": float(m), "interval95": float(h)}
                for k, (m, h) in enumerate(values.T)
            ]
    return plain


@plain_report.register
def _(report: EnsembleTest) -> dict[str, Any]:
    """Scores of members, of the ensemble, by its size; temperature; out of distribution."""
    found, heat = report.report, report.temperature
    count = len(found.members.accuracy)
    return {
        "samples": found.samples,
        "ensemble": found.ensemble(),
        "members": [found.member(index) for index in range(count)],
        "by_size": [found.by_size.at(index) for index in range(count)],
        "temperature": {
            "value": float(heat.temperature),
            "validation_nll_before": float(heat.nll_before),
            "validation_nll_after": float(heat.nll_after),
        },
        "out_of_distribution": {
            name: {
                "auroc": float(scores.auroc),
                "auroc_interval": _interval(scores.auroc_interval),
                "fpr95": float(scores.fpr95),
                "fpr95_interval": _interval(scores.fpr95_interval),
            }
            for name, scores in report.ood.items()
        },
    }


@headline.register
def _(report: TestReport) -> dict[str, float]:
    values = report.losses if report.accuracies is None else report.accuracies
    return {f"test/{'loss' if report.accuracies is None else 'accuracy'}": float(values[0, -1])}


@headline.register
def _(report: EnsembleTest) -> dict[str, float]:
    numbers = report.report.ensemble()
    aurocs = {f"test/auroc_{name}": float(scores.auroc) for name, scores in report.ood.items()}
    return {f"test/{name}": numbers[name] for name in _COLUMNS} | aurocs


@_table.register
def _(report: TestReport, name: str) -> list[str]:
    """Mean ± 95 % interval over tasks at each inner step."""
    regression = report.accuracies is None
    values = report.losses if report.accuracies is None else report.accuracies
    unit = "loss" if regression else "accuracy"
    lines = [f"{name}: {unit} on {report.tasks} tasks, mean ± 95 % interval"]
    for k, (mean, half) in enumerate(values.T.tolist()):
        shown = f"{mean:.4f} ± {half:.4f}" if regression else f"{mean:7.2%} ± {half:.2%}"
        lines.append(f"  after {k} inner steps  {shown}")
    return lines


@_table.register
def _(report: EnsembleTest, name: str) -> list[str]:
    """Members' median and range beside the ensemble."""
    found = report.report
    count = len(found.members.accuracy)
    lines = [f"{name}: {found.samples} samples, {count} members"]
    lines.append(f"  {'':10}{'ensemble':>10}{'members: median':>18}{'lowest':>10}{'highest':>10}")
    for score in _COLUMNS:
        values = getattr(found.members, score)
        row = (found.ensemble()[score], values.median(), values.min(), values.max())
        shown = [f"{float(v):.2%}" if score == "accuracy" else f"{float(v):.4f}" for v in row]
        lines.append(f"  {score:10}{shown[0]:>10}{shown[1]:>18}{shown[2]:>10}{shown[3]:>10}")
    heat = report.temperature
    lines.append(
        f"  temperature {float(heat.temperature):.3g} takes the validation NLL from "
        f"{float(heat.nll_before):.4f} to {float(heat.nll_after):.4f}"
    )
    for score, scores in report.ood.items():
        low, high = _interval(scores.auroc_interval) or (float("nan"),) * 2
        lines.append(
            f"  out of distribution by {score.replace('_', ' ')}: AUROC {float(scores.auroc):.4f} "
            f"({low:.4f} to {high:.4f}), FPR95 {float(scores.fpr95):.4f}"
        )
    return lines


def _interval(ends: Any) -> list[float] | None:
    return None if ends is None else [float(end) for end in ends]
