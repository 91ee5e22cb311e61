"""Studies: each in a few steps, what is kept of them, and their tables."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.cli.commands.study import study
from metalearn.data import digits_data, mislabelled
from metalearn.errors import DataError, SettingError
from metalearn.models import MLP
from metalearn.studies import (
    STUDIES,
    Study,
    StudyResult,
    StudyRunner,
    chosen_studies,
    distillation,
    label_errors,
    private_tasks,
    read_results,
    schedules,
    spoilt_training,
    study_table,
)
from metalearn.studies.rows import Rows
from metalearn.studies.stacks import fit_to_the_end, made_network, trained_stack
from metalearn.trainers import PerSampleTrainer
from tests.support.builders import signal_in_step
from tests.support.small_data import blobs


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a few steps."""
    for room, settings in (
        (label_errors, {"_BATCH": 16, "_TARGETS": 3}),
        (spoilt_training, {"_STEPS": 3, "_OUTER": 1, "_WHOLE": 4, "_GAMMAS": (2.0,)}),
        (distillation, {"_STEPS": 2, "_OUTER": 1, "_NETWORKS": 2, "_RATES": (0.1,)}),
        (schedules, {"_STEPS": 3, "_OUTER": 1, "_NETWORKS": 2, "_RATES": (0.05, 0.1)}),
    ):
        for name, value in settings.items():
            monkeypatch.setattr(room, name, value)


@pytest.mark.usefixtures("few_steps")
def test_scores_of_label_errors_are_areas() -> None:
    training = label_errors.ScoredTraining(hidden=32, steps=8)
    found = label_errors.find_label_errors(lambda seed: blobs(), training, 0, fraction=0.2).numbers
    areas = {name: row["auroc"] for name, row in found.items() if "auroc" in row}
    assert len(areas) == 9 and all(0 <= area <= 1 for area in areas.values())
    assert areas["TracIn, self"] > 0.7 and areas["exact, self"] > 0.7


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (
            "wrong_labels",
            ["uniform", "uniform, to the last step", "uniform, half of validation added",
             "focal loss", "confident learning", "learnt weights"],
        ),
        (
            "distilled",
            ["ten real pictures", "distilled for one network", "distilled for any network",
             "all training pictures"],
        ),
        ("schedule", ["cosine, rate tuned", "learnt by its gradient", "sweep at equal cost"]),
    ],
)  # fmt: skip
def test_each_study_has_its_rows(name: str, rows: list[str]) -> None:
    found = STUDIES[name].run(0)
    assert list(found.numbers) == rows
    for row in found.numbers.values():
        assert 0 <= row["accuracy"] <= 100 and row["seconds"] > 0
    assert set(found.chosen) <= set(rows)
    if name == "schedule":
        spent = found.numbers["sweep at equal cost"]["seconds"]
        assert spent >= found.numbers["learnt by its gradient"]["seconds"]


def test_privacy_of_tasks_has_a_row_for_each_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
    monkeypatch.setattr(private_tasks, "_TASKS", 4)
    monkeypatch.setitem(private_tasks._RUN, "steps", 2)
    monkeypatch.setitem(private_tasks._RUN, "meta_batch", 8)
    monkeypatch.setitem(private_tasks._RUN, "accountant", "rdp")
    found = private_tasks.task_privacy_errors(50, {3.0: 0.01, None: 0.02}, 0)
    assert list(found.numbers) == ["ε = 3", "without privacy"]
    assert all(row["after"] > 0 and row["seconds"] > 0 for row in found.numbers.values())
    assert found.chosen["without privacy"] == "rate 0.02" and "σ" in found.chosen["ε = 3"]


def test_private_steps_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = private_tasks._steps(0)
    few = {name: steps[name] for name in steps if "25 tasks" in name}
    monkeypatch.setattr(private_tasks, "_ROUNDS", 2)
    monkeypatch.setattr(private_tasks, "_steps", lambda seed: few)
    (row,) = private_tasks.task_privacy_times(0).numbers.values()
    assert set(row) == {"plain", "private", "ratio"} and min(row.values()) > 0


def test_the_added_half_is_that_of_the_outer_loss_and_chooses_nothing() -> None:
    data = mislabelled(digits_data(seed=0), fraction=0.3, seed=0)
    added: Any = spoilt_training._with_half_of_validation(data)
    train, chosen_by = (set(added.splits[name].tolist()) for name in ("train", "validation"))
    assert not train & chosen_by
    assert train | chosen_by == {
        *data.splits["train"].tolist(),
        *data.splits["validation"].tolist(),
    }
    assert len(added.wrong) == len(train) and int(added.wrong.sum()) == int(data.wrong.sum())


def test_a_stack_scores_each_rate_at_its_best() -> None:
    found = trained_stack(
        made_network(blobs(), [8]), blobs(), [1e-6, 0.1], seeds=[0, 0], steps=20, batch_size=16,
        eval_every=5,
    )  # fmt: skip
    assert [one.rate for one in found] == [1e-6, 0.1]
    assert 0 < found[1].validation < found[0].validation and found[1].nll < found[0].nll
    chosen = trained_stack(
        made_network(blobs(), [8]), blobs(), [0.1], seeds=[0], steps=10, batch_size=16,
        eval_every=5, monitor="accuracy",
    )[0]  # fmt: skip
    assert -1 <= chosen.validation < -0.5  # minus an accuracy: smaller is better


def of_a_seed(seed: int) -> Rows:
    rows = Rows()
    with rows.timed("ours"):
        rows.add("ours", f"rate {seed}", accuracy=90.0 + seed)
    rows.add("theirs", accuracy=80.0)
    return rows


STUDY = Study("wrong_labels", "A study", of_a_seed, {"accuracy": 1, "seconds": 0})


def test_results_are_kept_read_and_shown(tmp_path: Path) -> None:
    runner = StudyRunner(tmp_path)
    for seed in (2, 0):
        result = runner.run(STUDY, seed)
        assert result.chosen == {"ours": f"rate {seed}"} and runner.kept(STUDY, seed).exists()
    found = read_results(tmp_path)["wrong_labels"]
    assert [result.seed for result in found] == [0, 2]
    table = study_table(STUDY, found)
    assert "over seeds 0, 2" in table
    assert "| ours | 91.0 ± 1.4 | 0 |" in table and "| theirs | 80.0 ± 0.0 |  |" in table
    alone = study_table(STUDY, found[:1])
    assert "| ours | 90.0 | 0 |" in alone


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"study": "no_such"}, "there is no study 'no_such'"),
        ({"seed": -1}, "seed is -1"),
        ({"rows": {"a": {"b": "c"}}}, "rows"),
        ({"further": 1}, "further"),
        (None, "Expecting value"),
    ],
)
def test_what_is_no_result_is_named(tmp_path: Path, change: Any, said: str) -> None:
    state = StudyResult("schedule", 0, {}, {}, "abc", "a machine").as_json()
    text = "no json" if change is None else json.dumps({**state, **change})
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=f"a.json: .*{said}"):
        read_results(tmp_path)


def test_studies_by_name_and_pattern() -> None:
    assert [one.name for one in chosen_studies([])] == list(STUDIES)
    assert [one.name for one in chosen_studies(["label*", "schedule"])] == [
        "label_errors_digits", "label_errors_glyphs", "schedule",
    ]  # fmt: skip
    with pytest.raises(SettingError, match="study='shedule': one of .*; did you mean schedule"):
        chosen_studies(["shedule"])


def test_areas_are_of_wrong_labels_above_right_ones() -> None:
    wrong = torch.tensor([True, False, False, True])
    assert label_errors._auroc(torch.tensor([2.0, 1.0, 2.0, 3.0]), wrong) == 0.875


def test_a_training_that_is_stopped_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(seed: int) -> Rows:
        if seed:
            trainer = PerSampleTrainer(MLP((2,), 3, hidden=(4,)), blobs(), steps=9, batch_size=16)
            signal_in_step(trainer, 2, signal.SIGTERM)
            fit_to_the_end(trainer)
        return of_a_seed(seed)

    monkeypatch.setitem(STUDIES, "wrong_labels", replace(STUDY, run=stopped))
    with pytest.raises(SystemExit) as end:
        study(["wrong_labels", "--folder", str(tmp_path)])
    assert end.value.code == 130 and "goes on" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["wrong_labels-seed0.json"]
    monkeypatch.setitem(STUDIES, "wrong_labels", STUDY)
    study(["wrong_labels", "--seeds", "2", "--folder", str(tmp_path)])
    assert "| ours | 90.5 ± 0.7 |" in capsys.readouterr().out
    study(["wrong*", "--list", "--folder", str(tmp_path)])
    assert "seeds that have been run: 0, 1" in capsys.readouterr().out


def test_options_that_cannot_work(capsys: pytest.CaptureFixture[str]) -> None:
    for given, said in ((["--seeds", "0"], "--seeds=0: a number"), (["x"], "study='x': one of")):
        with pytest.raises(SystemExit) as end:
            study(given)
        assert end.value.code == 2 and said in capsys.readouterr().err
