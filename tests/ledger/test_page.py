"""The page says what the outcomes say.

Axes: S seeds.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from metalearn.errors import DataError, SettingError
from metalearn.ledger import (
    ROWS,
    TABLES,
    Outcome,
    Reported,
    Row,
    Score,
    chosen_rows,
    ledger_page,
    outcome_of,
    read_outcomes,
)
from metalearn.ledger.page import over_seeds, verdict
from metalearn.tracking import write_json

ROOT = Path(__file__).resolve().parents[2]
ROW = ROWS["omniglot_maml"]


def outcome(seed: int = 0, mean: float = 98.0, **changes: Any) -> Outcome:
    scores: Any = {"transductive": Score(mean, 0.5), "inductive": Score(mean - 2, 0.6)}
    given = {"scores": scores, "row": ROW.name, "seconds": 120.0, "cpu_seconds": 90.0, **changes}
    return Outcome(
        seed=seed, tasks=600, steps=10, chosen_step=5, monitor="accuracy_after",
        revision="abc1234", machine="a machine, 2 threads", **given,
    )  # fmt: skip


def test_the_page_of_the_project_is_that_of_its_outcomes() -> None:
    kept = read_outcomes(ROOT / "outputs" / "ledger")
    assert (ROOT / "docs" / "ledger.md").read_text(encoding="utf-8") == ledger_page(kept)


@pytest.mark.parametrize("name", list(ROWS))
def test_a_row_is_an_experiment(name: str) -> None:
    row = ROWS[name]
    assert row.name == name and row.table in TABLES and row.minutes > 0 and row.seeds
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        composed = compose("train", [f"experiment={name}"])
    assert composed.trainer.steps > 0 and "task" in composed


def test_every_experiment_on_tasks_is_a_row() -> None:
    found = {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
    assert found - set(ROWS) == {"digits_ensemble"}


def test_several_seeds_have_the_interval_of_student() -> None:
    means = [97.0, 98.0, 99.5]
    found = over_seeds([outcome(seed, mean) for seed, mean in enumerate(means)], "transductive")
    average = sum(means) / 3
    deviation = math.sqrt(sum((mean - average) ** 2 for mean in means) / 2)
    assert found is not None
    assert found.mean == pytest.approx(average)
    assert found.interval95 == pytest.approx(4.3027 * deviation / math.sqrt(3), rel=1e-3)
    assert over_seeds([outcome()], "transductive") == Score(98.0, 0.5)
    assert over_seeds([], "inductive") is None


@pytest.mark.parametrize(
    ("mean", "reported", "wanted"),
    [
        (98.0, Reported(98.7, "a paper"), "reproduced"),
        (98.0, Reported(99.0, "a paper"), "reproduced"),
        (98.0, Reported(99.1, "a paper"), "behind by 1.1 points"),
        (98.0, Reported(97.6, "a paper"), "reproduced"),
        (98.0, Reported(97.4, "a paper"), "ahead"),
        (98.0, Reported(98.0, "a paper", "inductive"), "behind by 2.0 points"),
        (98.0, None, "no published number"),
    ],
)
def test_verdicts(mean: float, reported: Reported | None, wanted: str) -> None:
    row = Row("omniglot_maml", "omniglot_5w1s", "MAML", 3, reported)
    assert verdict(row, TABLES[row.table], [outcome(mean=mean)]) == wanted


def test_a_paper_may_have_both_protocols() -> None:
    reported = Reported(97.0, "a paper", inductive=90.0)
    row = replace(ROW, reported=reported)
    assert verdict(row, TABLES[row.table], [outcome(mean=98.0)]) == "ahead"
    lines = ledger_page({ROWS["omniglot_reptile"].name: []}).splitlines()
    assert any(line.startswith("| Reptile | 97.68 (inductive 95.39) |") for line in lines)


def test_small_is_good_of_losses() -> None:
    row, table = (
        Row("sinusoid", "sinusoid", "MAML", 3, Reported(0.6, "a paper")),
        TABLES["sinusoid"],
    )
    for mean, wanted in ((0.05, "ahead"), (0.9, "reproduced"), (1.3, "behind by 0.70")):
        scores: Any = {"transductive": Score(mean, 0.5)}
        assert verdict(row, table, [outcome(scores=scores)]) == wanted


def test_what_was_not_run_says_so() -> None:
    assert "| not run yet |" in ledger_page({})
    row = Row("sinusoid", "sinusoid", "MAML", 3, not_run="it needs a download")
    assert verdict(row, TABLES["sinusoid"], []) == "not run here: it needs a download"


def test_outcomes_are_kept_and_read(tmp_path: Path) -> None:
    kept = [outcome(1, curve=[(0, 0.25), (10, 0.5)]), outcome(0, 97.0)]
    for one in kept:
        write_json(tmp_path / f"{one.row}-seed{one.seed}.json", one.as_json())
    found = read_outcomes(tmp_path)
    assert found[ROW.name] == [kept[1], kept[0]] and not found["sinusoid"]
    line = next(
        line for line in ledger_page(found).splitlines() if line.startswith("| MAML | 98.7")
    )
    assert "| 97.5 ± 6.4 | 95.5 ± 6.4 | behind by 1.2 points | 2 | 10 | 2 (2) |" in line
    notes = next(line for line in ledger_page(found).splitlines() if line.startswith("Papers: "))
    assert "Finn et al. 2017 (MAML, first-order MAML); " in notes
    assert "; Snell et al. 2017 (ProtoNet)" in notes
    assert notes.endswith("State chosen by: `accuracy_after` (MAML).")


def test_the_page_says_what_outcomes_were_normalised_with() -> None:
    both = [outcome(0, normalization="batch_stats"), outcome(1, normalization="batch_stats")]
    assert "Normalised with: `batch_stats` (MAML).\n" in ledger_page({ROW.name: both})
    assert "Normalised with" not in ledger_page({ROW.name: [outcome()]})


def test_rows_that_are_behind_show_how_their_validation_rose() -> None:
    curve = [(step, 0.5 + step / 100) for step in range(0, 41, 5)]
    behind = outcome(0, 97.0, curve=curve)
    sentence = "Validation on the way, of rows that are behind: MAML 60.0 at 10, 70.0 at 20, "
    assert f"{sentence}80.0 at 30, 90.0 at 40 steps.\n" in ledger_page({ROW.name: [behind]})
    assert "on the way" not in ledger_page({ROW.name: [outcome(0, 98.6, curve=curve)]})
    assert "on the way" not in ledger_page({ROW.name: [outcome(0, 97.0)]})


def test_the_page_says_what_was_trained_on_a_card() -> None:
    card = [outcome(seed, device="A card") for seed in (1, 2)]
    assert "Trained on: A card (MAML).\n" in ledger_page({ROW.name: card})
    some = ledger_page({ROW.name: [outcome(), *card]})
    assert "Trained on: A card (MAML, seeds 1 and 2).\n" in some
    assert "Trained on:" not in ledger_page({ROW.name: [outcome()]})


def test_minutes_are_of_the_processor_where_some_runs_were_trained_there() -> None:
    fast: Any = {"device": "A card", "seconds": 6.0, "cpu_seconds": 6.0}
    assert "| 10 | 2 (2) |" in ledger_page({ROW.name: [outcome(), outcome(1, **fast)]})
    assert "| 10 | 0 (0) |" in ledger_page({ROW.name: [outcome(1, **fast)]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row": "other"}, "there is no row 'other'"),
        ({"seed": -1}, "seed is -1, but a whole number"),
        ({"scores": {"both": {"mean": 1.0, "interval95": 0.0}}}, "a key of scores is 'both'"),
        ({"scores": {"inductive": {"mean": None, "interval95": 0.0}}}, "scores.inductive.mean is"),
        ({"more": 1}, "more is 1, but no such entry is needed"),
    ],
)
def test_a_damaged_outcome_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_json(tmp_path / "x.json", {**outcome().as_json(), **changes})
    with pytest.raises(DataError, match=f"x.json: {message}"):
        read_outcomes(tmp_path)


def test_a_run_without_a_test_is_refused(tmp_path: Path) -> None:
    write_json(
        tmp_path / "results.json",
        {"steps": 1, "seconds": 2.0, "cpu_seconds": None, "reason": "finished"},
    )
    with pytest.raises(DataError, match="evaluation-test.json: no such file"):
        outcome_of(ROW, 0, tmp_path)


def test_rows_are_chosen_by_name_table_and_pattern() -> None:
    names = [row.name for row in chosen_rows([])]
    assert names == sorted(
        (name for name in ROWS if not ROWS[name].not_run), key=lambda name: ROWS[name].minutes
    )
    assert {row.table for row in chosen_rows(["sinusoid"])} == {"sinusoid"}
    assert {row.table for row in chosen_rows(["omniglot_5w1s"])} == {"omniglot_5w1s"}
    assert ROWS["omniglot_protonet"] in chosen_rows(["*_protonet"])
    with pytest.raises(SettingError, match="^row='omniglot_mml': .*did you mean omniglot_maml"):
        chosen_rows(["omniglot_mml"])
