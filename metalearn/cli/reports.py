"""Test scores as JSON, as a table, and as the few numbers that runs are compared by.

Axes: M members, K inner steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

from metalearn.trainers import EnsembleTest, MemberReport, TestReport

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


@singledispatch
def member_headlines(report: Report) -> list[dict[str, float]]:
    """The same of each member; empty where there are none."""
    raise TypeError(type(report))


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
    members = report.members
    if members is not None:
        values = members.losses if members.accuracies is None else members.accuracies
        name = "loss" if members.accuracies is None else "accuracy"
        plain["members"] = [
            {name: {"mean": float(row[0, -1]), "interval95": float(row[1, -1])}} for row in values
        ]
        for name, ends in (("epistemic", members.epistemic), ("calibration", members.calibration)):
            if ends is not None:
                plain[name] = {"mean": float(ends[0]), "interval95": float(ends[1])}
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


@member_headlines.register
def _(report: TestReport) -> list[dict[str, float]]:
    found = report.members
    if found is None:
        return []
    values, name = (
        (found.losses, "loss") if found.accuracies is None else (found.accuracies, "accuracy")
    )
    return [{f"test/{name}": float(row[0, -1])} for row in values]


@member_headlines.register
def _(report: EnsembleTest) -> list[dict[str, float]]:
    found = report.report
    return [
        {f"test/{k}": v for k, v in found.member(index).items() if k in _COLUMNS}
        for index in range(len(found.members.accuracy))
    ]


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
    return lines + _member_lines(report.members)


def _member_lines(members: MemberReport | None) -> list[str]:
    """The members of an ensemble of learners, of whose mean prediction the lines before are."""
    if members is None:
        return []
    regression = members.accuracies is None
    values = members.losses if members.accuracies is None else members.accuracies
    each = values[:, 0, -1]
    ends = (each.median(), each.min(), each.max())
    median, low, high = (f"{float(v):.4f}" if regression else f"{float(v):.2%}" for v in ends)
    lines = [f"  of its {len(each)} members alone: median {median}, {low} to {high}"]
    what = "variance between members" if regression else "mutual information, nats"
    mean, half = members.epistemic.tolist()
    lines.append(f"  {what}: {mean:.4f} ± {half:.4f} a task")
    if members.calibration is not None:
        mean, half = members.calibration.tolist()
        lines.append(f"  calibration error over a task's queries: {mean:.4f} ± {half:.4f}")
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
