"""Rounds, and what tables and figures say of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from metalearn.benchmarks.processes import AskedProcess
from metalearn.benchmarks.runs.attribution_suite import attribution_table
from metalearn.benchmarks.runs.contestant import Contestant
from metalearn.benchmarks.runs.entrants import Package
from metalearn.benchmarks.runs.hyper_suite import hyper_figure, hyper_race, hyper_table
from metalearn.benchmarks.runs.races import RACES
from metalearn.benchmarks.runs.rounds import Finish, agreement, raced

TINY: dict[str, Any] = {"examples": 20, "batch": 10, "hidden": (4,)}


def test_entrants_race_in_processes_of_their_own() -> None:
    keys = ["mixed", "reference"]
    field = hyper_race("hyper", [3], losses=2, rounds=2, keys=keys, **TINY)
    finishes = field[3]
    assert list(finishes) == keys and finishes["mixed"].ratio == 1
    for finish in finishes.values():
        assert not finish.failure and finish.seconds > 0 and finish.memory >= 0
        assert finish.error < 1e-4 and finish.result is not None
        assert finish.result.shape == (2, 20)
    lines = hyper_table("hyper", field).splitlines()
    assert lines[0] == "| | K = 3: ms (÷ ours) | MB | error |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| ours, mixed"]


def test_what_is_not_installed_or_not_taken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    entrants = dict(RACES["hyper"].entrants)
    absent = replace(entrants["higher"], needs=Package("no_such_module", "pip install it"))
    monkeypatch.setitem(RACES, "hyper", replace(RACES["hyper"], entrants=entrants))
    monkeypatch.setitem(entrants, "higher", absent)
    monkeypatch.setitem(entrants, "betty", replace(entrants["betty"], needs=None))
    found = raced("hyper", {"losses": 2, **TINY}, rounds=1, keys=["higher", "betty"])
    table = hyper_table("hyper", {20: found})
    assert "higher did not run: not installed (pip install it)." in table
    assert "betty, IterativeProblem did not run: it has one outer loss." in table


def test_a_library_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(problem: Any) -> Any:
        raise KeyError("input_ids\nand more")

    entrants = dict(RACES["hyper"].entrants)
    entrants["higher"] = replace(entrants["higher"], prepare=fails)
    monkeypatch.setitem(RACES, "hyper", replace(RACES["hyper"], entrants=entrants))
    answers = Contestant("hyper", "higher", TINY)
    assert answers.answer("memory")["failure"].startswith("KeyError: ")
    assert "\n" not in answers.answer("turn")["failure"]


def test_a_process_that_ends_is_a_failure() -> None:
    with AskedProcess("stat", []) as process:
        assert not process.ask("turn")


def test_rank_correlation_is_the_mean_over_targets() -> None:
    rows = torch.tensor([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])
    assert agreement(rows, rows) == pytest.approx(1)
    assert agreement(rows, torch.stack([rows[0], -rows[1]])) == pytest.approx(0)


def _field(*, failing: str = "") -> dict[int, dict[str, Finish]]:
    keys = RACES["hyper"].entrants
    field = {}
    for count in (20, 100):
        made = {key: Finish(key, 0.01 * count, 1.5, 2e6, 1e-6) for key in keys}
        if failing and count == 100:
            made[failing] = Finish(failing, failure="RuntimeError: no memory")
        field[count] = made
    return field


def test_the_table_of_several_steps_has_a_cell_for_a_failure() -> None:
    lines = hyper_table("hyper", _field(failing="higher")).splitlines()
    row = next(line for line in lines if line.startswith("| higher"))
    assert row == "| higher | 200 (1.50) | 2 | 1e-06 | RuntimeError: no memory | | |"
    assert all(line.count("|") == lines[1].count("|") for line in lines)
    assert not any("float64" in line for line in lines)


def test_the_figure_has_a_line_for_each_entrant_that_is_timed() -> None:
    figure = hyper_figure("hyper", _field(failing="higher"), "title")
    left, right = figure.axes
    titles = [entrant.title for entrant in RACES["hyper"].entrants.values() if entrant.timed]
    assert [line.get_label() for line in left.lines] == titles
    assert list(left.lines[0].get_ydata()) == [0.2, 1.0]
    assert list(right.lines[0].get_ydata()) == [2.0, 2.0]
    higher = next(line for line in left.lines if line.get_label() == "higher")
    assert list(higher.get_xdata()) == [20]


def test_the_table_of_attribution_says_what_differs_and_what_a_training_is_worth() -> None:
    found = {key: Finish(key, 0.1, 1.0, 1e6, 0.0) for key in RACES["attribution"].entrants}
    found["exact"] = Finish("exact", 0.3, 1.0, 2e6, 0.0)
    found["kronecker_dattri"].error = 0.48
    found["trak_traker"] = Finish("trak_traker", failure="not installed (pip install traker)")
    table = attribution_table(found)
    assert "| exact scores | ours | 300 | 1.00 | 2 |  |" in table
    assert "| influence, Kronecker factors | dattri | 100 | 1.00 | 1 | 0.520, another result |" in (
        table
    )
    assert "traker did not run: not installed (pip install traker)." in table
    assert "| exact scores | 3.00 | 1.00 | 3.00 |" in table
    assert math.isnan(found["trak_traker"].seconds)
