"""The sentences below tables, from the numbers in these: what they mean, and what is alarming."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from metalearn.cli.comparison.certainty import certainty
from metalearn.cli.comparison.rows import Row
from metalearn.cli.diagnosis_text import diagnosis_lines
from metalearn.evaluation.seeds import mean_over_seeds
from metalearn.percent import NAN_MEANS, decimals
from metalearn.trainers import EnsembleTrainer
from metalearn.trainers.diagnostics import Diagnosis
from metalearn.trainers.diagnostics.result import DiagnosticResult
from metalearn.trainers.meaning import of_adaptation, of_classes, of_targets
from metalearn.trainers.report import report_text
from tests.support.small_data import trainer


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"accuracy": 0.9, "ece": 0.02, "confidence": 0.9}, "can be taken as they are"),
        ({"accuracy": 0.9, "ece": 0.3, "confidence": 0.6}, "0.30 is alarming.*are too low.$"),
        ({"accuracy": 0.6, "ece": 0.07, "confidence": 0.67}, "0.07 is worth a look.*too high.$"),
        (
            {"accuracy": 0.6, "ece": 0.2, "confidence": 0.9, "mended": True},
            "temperature may mend.$",
        ),
        ({"accuracy": 0.9, "ece": 0.0, "confidence": 0.9, "median": 0.8}, "right 10.0 points more"),
        (
            {"accuracy": 0.8, "ece": 0.0, "confidence": 0.8, "median": 0.8},
            "no better than the median",
        ),
        ({"accuracy": 1.0, "ece": 0.0, "confidence": 1.0, "median": 1.0}, "right nearly always"),
        (
            {"accuracy": 0.7, "ece": 0.3, "confidence": 0.4, "samples": 40},
            "^40 samples are too few",
        ),
        ({"accuracy": 0.7, "ece": 0.0, "confidence": 0.7, "median": math.nan}, "^Its prob"),
        ({"accuracy": 0.7, "ece": 0.0, "confidence": 0.7, "median": 0.8}, "^Alarming: together"),
        ({"accuracy": 0.7, "ece": math.nan, "confidence": 0.7}, "^There is no calibration error"),
    ],
)
def test_classes(given: dict[str, Any], said: str) -> None:
    assert _matches(said, of_classes(**{"samples": 500, **given}))


@pytest.mark.parametrize(
    ("coverage", "epistemic", "said"),
    [
        (0.95, None, "hold 95.0 %, as so many should.$"),
        (0.5, 0.25, "^Alarming: .* hold 50.0 %.*; 25 % of the variance lies between members"),
        (1.0, math.nan, "wider than they need to be.$"),
        (math.nan, None, "^No interval"),
    ],
)
def test_targets(coverage: float, epistemic: float | None, said: str) -> None:
    assert _matches(said, of_targets(coverage, epistemic, 500))


@pytest.mark.parametrize(
    ("after", "larger", "said"),
    [
        ((0.9, 0.01), True, "^Adaptation betters the accuracy by 40.0 points"),
        ((0.9, 0.01), False, "^Alarming: adaptation makes the loss worse"),
        ((0.505, 0.01), True, "^Adaptation changes the accuracy by less"),
        ((0.495, 0.01), True, "^Adaptation changes the accuracy by less"),
        ((0.2, 0.01), False, "^Adaptation betters the loss by 0.3,"),
        ((0.2, math.nan), False, "^Alarming: the inner steps have no finite outcome"),
        ((-math.inf, 0.1), False, "^Alarming: the inner steps have no finite outcome"),
        ((math.nan, math.nan), False, "^Alarming: the inner steps have no finite outcome"),
    ],
)
def test_adaptation(after: tuple[float, float], larger: bool, said: str) -> None:
    assert _matches(said, of_adaptation((0.5, 0.01), after, larger_is_better=larger))


def test_a_table_is_followed_by_its_meaning_and_nan_is_explained_once() -> None:
    made = trainer(EnsembleTrainer)
    report = made.reports("test")["test"]
    lines = report_text({"test": report, "again": report}).splitlines()
    assert lines[-1] == f"  {report.meaning()}" and lines.count(lines[-1]) == 2
    assert report_text({"x": _Unknown(), "y": _Unknown()}).splitlines() == [
        "x: NaN",
        "y: NaN",
        NAN_MEANS,
    ]


class _Unknown:
    def lines(self, name: str) -> list[str]:
        return [f"{name}: {decimals(math.nan)}"]

    def as_json(self) -> dict[str, Any]:
        return {}

    def headline(self) -> dict[str, float]:
        return {}

    def member_headlines(self) -> list[dict[str, float]]:
        return []


def _diagnosed(**values: Any) -> dict[str, DiagnosticResult]:
    norms: Any = {"median": 1.0, "highest": values.get("highest", 2.0), "lowest": 0.5}
    norms["non_finite"] = values.get("lost", 0.0)
    scale: Any = {"noise_scale": values.get("scale", 64.0), "noise": 1.0}
    return {
        "gradient_norms": DiagnosticResult(norms),
        "noise_scale": DiagnosticResult(scale),
        "own": DiagnosticResult({"first": torch.tensor([1.0, 3.0]), "second": torch.tensor(2.0)}),
    }


@pytest.mark.parametrize(
    ("values", "alarm"),
    [
        ({}, None),
        ({"lost": 3.0}, "3 gradients are not finite"),
        ({"highest": 500.0}, "the longest gradient is 500 times the median"),
        ({"scale": 6400.0}, "a step's mean of 64 has 100 times as much noise as signal"),
        ({"scale": math.nan}, "cannot be told from noise"),
    ],
)
def test_a_diagnosis_is_short_and_says_what_is_alarming(
    values: dict[str, float], alarm: str | None
) -> None:
    found = Diagnosis({"network": _diagnosed(**values)}, {"network/fisher": "no likelihood"})
    lines = diagnosis_lines(found, {"network": 64}, "it.json")
    table = [line for line in lines if line.startswith("|")]
    assert len({len(line) for line in table}) == 1, "aligned"
    assert len(table) == 2 + 2 + 1 + 2, "an own quantity has all its rows, the others what is read"
    alarms = [line for line in lines if line.startswith("network: alarming: ")]
    assert len(alarms) == (alarm is not None) and all(alarm in line for line in alarms if alarm)
    assert (
        (NAN_MEANS in lines) == ("NaN" in "".join(table)) == (alarm == "cannot be told from noise")
    )
    assert lines[-2:] == [
        "left out: network/fisher: no likelihood",
        "3 more numbers, and those by layer, are in it.json",
    ]


def test_of_several_networks_no_limit_of_one_is_held_to_what_is_pooled() -> None:
    found = Diagnosis({"members": _diagnosed(highest=500.0)}, {})
    (said,) = [line for line in diagnosis_lines(found, {}, "it.json") if line.startswith("members")]
    assert said.startswith("members: not alarming: ") and "500 times the median, of all" in said


def test_eigenvalues_of_another_kind_have_no_verdict() -> None:
    shown = {"eigenvalues": DiagnosticResult({"own_1": torch.tensor(2.0)})}
    lines = diagnosis_lines(Diagnosis({"network": shown}, {}), {}, "it.json")
    assert not any("alarming" in line for line in lines)


def test_a_rate_is_stable_for_the_steepest_member() -> None:
    values = {
        "hessian_1": torch.tensor([4.0, 100.0]),
        "ggn_1": torch.tensor([4.0, 90.0]),
        "hessian_largest_residual": torch.tensor([0.0, 0.1]),
    }
    shown = {"eigenvalues": DiagnosticResult(values)}
    lines = diagnosis_lines(Diagnosis({"members": shown}, {}), {}, "it.json")
    assert any("learning rates up to 2/100 = 0.02 are stable" in line for line in lines)
    unsettled = {"hessian_largest_residual": torch.tensor([0.5, 0.1])}  # of the first member
    shown = {"eigenvalues": DiagnosticResult(values | unsettled)}
    lines = diagnosis_lines(Diagnosis({"members": shown}, {}), {}, "it.json")
    assert any("eigenvalues have not settled" in line for line in lines)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ([0.9, 0.91], [0.1, 0.11], "better than the second beyond chance"),
        ([0.9, 0.5], [0.8, 0.4], "is open"),
        ([0.9], [0.8, 0.4], "One seed tells nothing of chance"),
    ],
)
def test_a_comparison_says_how_sure_its_order_is(
    first: list[float], second: list[float], said: str
) -> None:
    rows = [_row(first), _row(second)]
    order = "Rows stand in the order of best/accuracy (validation), the highest first."
    (sentence,) = certainty(rows, order)
    assert said in sentence
    assert not certainty(rows[:1], order)
    assert not certainty(
        rows, "Rows stand in the order in which they were found: their tasks differ."
    )


def _row(scores: list[float]) -> Row:
    class Run:
        state = None

    runs: Any = [Run()] * len(scores)
    return Row({}, runs, {"best/accuracy": mean_over_seeds(scores)})


def _matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None
