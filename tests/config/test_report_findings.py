"""What ``diagnose`` and ``attribute`` found, on the page of a run, and damage of both."""

from __future__ import annotations

import html
import json
import math
from typing import Any

import pytest

from metalearn.cli.reports.attributed import attribution_part
from metalearn.cli.reports.diagnosed import diagnosis_part
from metalearn.trainers.diagnostics import DIAGNOSTICS
from tests.support.html_pages import Read, check_self_contained

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
BLOCK = {"trace": [1.0, 3.0], "by_layer": {"noise": {"first": 7.25}, "scale": {"first": 1.5}}}


def text_of(parts: Any) -> str:
    page = "<html><body>" + "".join(parts) + "</body></html>"
    check_self_contained(page)
    return " ".join(Read(page.replace("</t", " </t")).text.split())


@pytest.mark.parametrize("kind", DIAGNOSTICS.values(), ids=lambda kind: kind.name)
def test_every_diagnostic_says_what_it_means_and_what_alarms(kind: Any) -> None:
    assert "Alarming:" in kind.reading
    name = kind.offline_name or kind.name
    found = {"findings": {"initial": {name: BLOCK}, "adapted": {name: BLOCK}}}
    text = text_of(diagnosis_part(found))
    assert text.count(" ".join(kind.reading.split())) == 1  # said once, not for every source
    assert "At the initial parameters" in text and "Adapted to each task" in text
    assert "7.25" in text and "By layer, 1 layer" in text


def test_members_have_columns_and_what_is_left_out_is_said_once() -> None:
    left = {"network/cosines": "a single model", "adapted/cosines": "a single model"}
    values = {"noise_scale": 4.5, "noise": [1.0, 2.0, 9.0], "nothing": [], "lost": [math.nan]}
    text = text_of(
        diagnosis_part({"findings": {"members": {"noise_scale": values}}, "left_out": left})
    )
    assert "noise scale 4.5" in text and "2 1 9" in text  # median, lowest, highest
    assert text.count("a single model") == 1


@pytest.mark.parametrize(
    "found",
    [
        {"findings": []},
        {"findings": {"members": 3, "other": {"cosines": [1]}}, "left_out": 7},
        {"findings": {"members": {"cosines": {"matrix": [[1, "x"], 3], "by_layer": {"a": 1}}}}},
        {"findings": {HOSTILE: {HOSTILE: {HOSTILE: HOSTILE}}}, "left_out": {HOSTILE: HOSTILE}},
        {"findings": {"network": {"density": {"density": {"density": [None, math.nan]}}}}},
        {"findings": {"members": {"cosines": {"matrix": [[1.0, math.nan], [None, 1.0]]}}}},
    ],
)
def test_a_damaged_diagnosis_is_passed(found: dict[str, Any]) -> None:
    text_of(diagnosis_part(found))


def of_run(**more: Any) -> dict[str, Any]:
    state = {"split": "test", "state": "after step 4", "scores": "positive", "warnings": []}
    return state | more


def left_out(change: float | None, flipped: float) -> list[dict[str, Any]]:
    return [{"left_out": 10, "loss_change": change, "interval95": 0.25, "flipped": flipped}]


def test_leaving_out_stands_beside_chance() -> None:
    methods = {"exact": {"seconds": 1.0, "leave_k_out": left_out(0.675, 0.5)}}
    found = of_run(methods=methods, leave_k_out_by_chance=left_out(-0.03, 0.0))
    text = text_of(attribution_part(found))
    assert "(as many by chance) −0.03 ± 0.25 0 %" in text
    assert "exact +0.68 ± 0.25 50 %" in text or "exact +0.67 ± 0.25 50 %" in text
    unknown = of_run(methods={"exact": {"seconds": None, "leave_k_out": left_out(None, math.nan)}})
    assert "exact – ± 0.25 –" in text_of(attribution_part(unknown))


def learner() -> dict[str, Any]:
    ranked = {"adaptation": [{"example": 3, "label": HOSTILE, "score": 0.5}]}
    query = {"row": 1, "label": "b", "prediction": "c", "loss": 2.5}
    query |= {"most_helpful": ranked, "most_harmful": {"adaptation": []}}
    task = {"task": 4, "loss": 1.25, "of_queries": [query]}
    task |= {"most_helpful_tasks": [{"task": 23, "score": 0.125}], "most_harmful_tasks": []}
    methods = {"adaptation": {"what": "the gradient through adaptation", "seconds": 2.0}}
    agreement = {"mean": 0.3, "interval95": None}
    return of_run(methods=methods, of_tasks=[task], correlation_with_leaving_out=agreement)


def test_support_examples_and_training_tasks_of_a_learner_are_told() -> None:
    text = text_of(attribution_part(learner()))
    for words in ("4 1: b c 2.5", f"no. 3 ({HOSTILE}) 0.5", "task 23: 0.125", "0.30"):
        assert words in html.unescape(text), words


@pytest.mark.parametrize("name", ["methods", "of_tasks", "warnings", "state"])
@pytest.mark.parametrize("value", [7, [HOSTILE], {HOSTILE: HOSTILE}, None])
def test_damaged_findings_of_a_learner_are_said_to_be(name: str, value: Any) -> None:
    text = text_of(attribution_part(json.loads(json.dumps(learner() | {name: value}))))
    if (name, value) not in [("warnings", [HOSTILE])]:
        assert "not as attribute writes them" in text
