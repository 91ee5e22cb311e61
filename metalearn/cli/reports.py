"""Test scores as JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metalearn.trainers import TestReport

__all__ = ["plain_report", "report_table"]


def plain_report(report: TestReport) -> dict[str, Any]:
    """A report as JSON: mean and half-width of the 95 % interval at each inner step."""
    plain: dict[str, Any] = {"tasks": report.tasks}
    for name, values in (("loss", report.losses), ("accuracy", report.accuracies)):
        if values is not None:
            plain[name] = [
                {"inner_step": k, "mean": float(m), "interval95": float(h)}
                for k, (m, h) in enumerate(values.T)
            ]
    return plain


def report_table(reports: Mapping[str, TestReport]) -> str:
    """Mean ± 95 % interval over tasks at each inner step."""
    if not reports:
        return ""
    lines = []
    for name, report in reports.items():
        regression = report.accuracies is None
        values = report.losses if report.accuracies is None else report.accuracies
        unit = "loss" if regression else "accuracy"
        head = f"{name}: {unit} on {report.tasks} tasks, mean ± 95 % interval"
        lines.append(head)
        for k, (mean, half) in enumerate(values.T.tolist()):
            shown = f"{mean:.4f} ± {half:.4f}" if regression else f"{mean:7.2%} ± {half:.2%}"
            lines.append(f"  after {k} inner steps  {shown}")
    return "\n".join(lines)
