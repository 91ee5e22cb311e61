"""Reports of tests, as lines that a person reads.

Axes: K inner steps.
"""

from __future__ import annotations

import pytest
import torch

from metalearn.trainers.meta.by_set import PartReport
from metalearn.trainers.meta.reports import TestReport as Report

LOSSES = torch.tensor([[2.0, 1.5, 12.0], [0.25, 0.5, 0.0]])


@pytest.mark.parametrize(
    ("accuracies", "rows"),
    [
        (None, ["2.0000 ± 0.2500", "1.5000 ± 0.5000", "12.0000 ± 0.0000"]),
        (LOSSES / 16, [" 12.5 % ± 1.6 %", "  9.4 % ± 3.1 %", " 75.0 % ± 0.0 %"]),
    ],
)
def test_each_inner_step_has_a_line(accuracies: torch.Tensor | None, rows: list[str]) -> None:
    name = "loss" if accuracies is None else "accuracy"
    assert Report(7, LOSSES, accuracies).lines("inductive") == [
        f"inductive: {name} on 7 tasks, mean ± 95 % interval",
        f"  after 0 inner steps  {rows[0]}",
        f"  after 1 inner step   {rows[1]}",
        f"  after 2 inner steps  {rows[2]}",
    ]


@pytest.mark.parametrize(
    ("accurate", "row"), [(False, "2.0000 ± 0.2500"), (True, "12.5 % ± 1.6 %")]
)
def test_without_inner_steps_there_is_one_line(accurate: bool, row: str) -> None:
    first = LOSSES[:, :1]
    report = Report(7, first, first / 16 if accurate else None)
    assert report.lines("test")[1:] == [f"  {row}"]


@pytest.mark.parametrize(("accurate", "row"), [(False, "2.0000"), (True, "12.5 %")])
def test_one_task_has_no_interval(accurate: bool, row: str) -> None:
    alone = torch.tensor([0.25, 0.0])
    parts = {"letters": PartReport(1, alone, None)}
    report = Report(
        1,
        LOSSES,
        LOSSES / 16 if accurate else None,
        calibration=alone,
        risk_coverage=alone,
        by_set=parts,
    )
    title, first, *_ = report.lines("test")
    assert title.endswith("on 1 task, which has no interval")
    assert first.startswith("  after 0 inner steps") and first.endswith(row)
    assert all("±" not in line for line in report.lines("test"))
