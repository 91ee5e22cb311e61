"""Runs side by side: real ones from the command line, held against scipy; and what is no run."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import yaml
from scipy import stats

from metalearn.trainers.meta.evaluator import MetaEvaluator
from tests.saved_runs.double import copy_of
from tests.support.commands import ROOT, TINY, Outcome

SAVED = ROOT / "tests" / "saved_runs"
FOUND = ("csv", "json", "md", "png")
Run = Callable[..., Outcome]


def written(folder: Path) -> dict[str, Any]:
    """The JSON of a comparison, all of whose files are there."""
    assert sorted(path.name for path in folder.iterdir()) == [f"compare.{end}" for end in FOUND]
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")
    found: dict[str, Any] = json.loads((folder / "compare.json").read_text())
    return found


def results_of(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run, "results.json").read_text())
    return found


def change_config(run: Path, **changes: Any) -> None:
    """Set ``group__setting`` of a saved configuration; None of a group takes it away."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    for name, value in changes.items():
        group, _, setting = name.partition("__")
        (config[group] if setting else config)[setting or group] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def give_results(run: Path, **numbers: Any) -> None:
    headline = {name.replace("__", "/"): value for name, value in numbers.items()}
    results = {"steps": 40, "reason": "finished", "headline": headline}
    (run / "results.json").write_text(json.dumps(results))


def sinusoid(folder: Path, **numbers: Any) -> Path:
    """A finished run with other results."""
    copy_of(SAVED / "v1" / "meta_sinusoid-finished", folder)
    if numbers:
        give_results(folder, **numbers)
    return folder


def test_trained_runs_against_scipy(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two learning rates over two seeds, a run by itself, and an ensemble on digits."""
    monkeypatch.setattr(MetaEvaluator, "_draw", lambda *given: None)
    monkeypatch.setattr("metalearn.cli.commands.train.provenance", dict)  # asks git: slow
    tiny = [*TINY, "trainer.steps=2", "maml.engine=vmap"]
    rates = "maml.inner_lr=0.01,0.02"
    assert run("train", "-m", "seed=0,1", *tiny, rates, "hydra.sweep.dir=sweep").code == 0
    digits = [
        "trainer=ensemble", "trainer.members=2", "trainer.steps=2", "model.hidden=[8]",
        "trainer.progress=false", "device=cpu",
    ]  # fmt: skip
    assert run("train", *tiny, "maml.inner_lr=0.02", "learner=fomaml", "hydra.run.dir=fo").code == 0
    assert run("train", *digits, "hydra.run.dir=digits").code == 0
    outcome = run("compare", "sweep", "fo", "folder=all")
    assert outcome.code == 0, outcome.err
    found = written(tmp_path / "all")
    assert len(found["groups"]) == 3 and not found["passed_over"] and not found["notes"]
    by_settings = {tuple(group["settings"].values()): group for group in found["groups"]}
    assert set(by_settings) == {("maml", 0.01), ("maml", 0.02), ("fomaml", 0.02)}
    assert list(found["groups"][0]["settings"]) == ["learner", "maml.inner_lr"]
    for group in found["groups"]:
        headlines = [results_of(name)["headline"] for name in group["runs"]]
        assert set(group["numbers"]) == set(headlines[0]) == {"best/loss_after", "test/loss"}
        for name, number in group["numbers"].items():
            values = [headline[name] for headline in headlines]
            assert number["values"] == values
            assert number["mean"] == pytest.approx(fmean(values))
            if len(values) == 2:
                low, high = stats.t.interval(0.95, 1, fmean(values), stdev(values) / math.sqrt(2))
                assert number["interval95"] == pytest.approx((high - low) / 2, rel=1e-4)
                assert "interval95_of_run" not in number
            else:
                assert number["interval95"] is None and number["deviation"] is None
    (last,) = results_of("fo")["test"]["transductive"]["loss"][-1:]
    of_run = by_settings["fomaml", 0.02]["numbers"]["test/loss"]["interval95_of_run"]
    assert of_run["over"] == "test tasks"
    assert of_run["low"] == pytest.approx(last["mean"] - last["interval95"])
    assert of_run["high"] == pytest.approx(last["mean"] + last["interval95"])
    scores = [group["numbers"]["best/loss_after"]["mean"] for group in found["groups"]]
    assert scores == sorted(scores)
    assert found["order"].startswith("Rows stand in the order of best/loss_after (validation)")
    _check_table(tmp_path / "all" / "compare.csv", found)
    _check_kinds(run, tmp_path)


def _check_table(path: Path, found: dict[str, Any]) -> None:
    """The file of rows has the same numbers."""
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert len(rows) == len(found["groups"])
    for row, group in zip(rows, found["groups"]):
        assert row["maml.inner_lr"] == str(group["settings"]["maml.inner_lr"])
        number = group["numbers"]["test/loss"]
        assert float(row["test/loss"]) == number["mean"]
        over = "seeds" if len(group["runs"]) > 1 else "test tasks"
        assert row["test/loss, interval over"] == over
        assert (row["best/loss_after, interval over"] == "seeds") == (over == "seeds")


def _check_kinds(run: Run, folder: Path) -> None:
    """Learners beside an ensemble: what one kind has alone is blank for the other."""
    outcome = run("compare", "digits", "fo", "folder=kinds")
    assert outcome.code == 0, outcome.err
    found = written(folder / "kinds")
    ensemble, learner = found["groups"]
    assert ensemble["runs"] == ["digits"] and learner["runs"] == ["fo"]
    assert ensemble["settings"]["data"] == "digits" and "data" in learner["without"]
    assert learner["settings"]["task"] == "sinusoid" and "task" in ensemble["without"]
    assert [group["settings"]["trainer"] for group in found["groups"]] == ["ensemble", "meta"]
    assert "trainer.meta_batch" not in learner["settings"]  # which the other cannot have
    assert "best/member_loss" in ensemble["numbers"] and "best/loss_after" in learner["numbers"]
    assert "in the order in which they were found" in found["order"]
    assert any("of different kinds" in note for note in found["notes"])
    assert any("Rows differ in what they were tested on" in note for note in found["notes"])
    assert found["order"] in outcome.out and all(note in outcome.out for note in found["notes"])


def test_intervals_of_seeds_and_of_one_run_stand_apart(run: Run, tmp_path: Path) -> None:
    for seed, value in enumerate((0.5, 0.6, 0.9)):
        place = sinusoid(tmp_path / f"many{seed}", best__accuracy=value, test__accuracy=value / 2)
        change_config(place, seed=seed, task__seed=seed, model__seed=seed)
    alone = sinusoid(tmp_path / "alone", best__accuracy=0.7, test__accuracy=0.41)
    change_config(alone, maml__inner_lr=0.3)
    results = json.loads((alone / "results.json").read_text())
    along = [{"inner_step": 0, "mean": 0.41, "interval95": 0.05}]
    results["test"] = {"transductive": {"tasks": 9, "accuracy": along}}
    (alone / "results.json").write_text(json.dumps(results))
    outcome = run("compare", "many0", "many1", "many2", "alone", "folder=out")
    assert outcome.code == 0, outcome.err
    lines = (tmp_path / "out" / "compare.md").read_text().splitlines()
    head, _, *rows = [[c.strip() for c in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert [name for name in head if "test/" in name] == [
        "test/accuracy", "test/accuracy, 95 % over seeds", "test/accuracy, 95 % over test tasks",
    ]  # fmt: skip
    place = head.index("test/accuracy")
    shown = {row[head.index("seeds")]: row[place : place + 3] for row in rows}
    half = stats.t.ppf(0.975, 2) * stdev((0.25, 0.3, 0.45)) / math.sqrt(3)
    assert shown["0, 1, 2"] == ["33.3 %", f"± {100 * half:.1f} %", "–"]
    assert shown["0"] == ["41.0 %", "–", "± 5.0 %"]


def test_words_patterns_and_lists_are_the_same_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        change_config(sinusoid(tmp_path / "s" / str(seed), best__loss=seed), seed=seed)
    change_config(sinusoid(tmp_path / "s" / "it's=10, $x", best__loss=9), seed=10)
    (tmp_path / "s" / "notes").mkdir()
    ways = [["s"], ["s/*"], ["runs=s"], ["runs=[s/0,s/1,s/2,'s/it*']"], ["s/[012]", "s/i*"]]
    ways += [["s/0", "s/1", "s/2", "s/it's=10, $x"], ["s", "s/0", "s/../s/1"]]
    found = []
    for number, words in enumerate(ways):
        outcome = run("compare", *words, f"folder=out{number}")
        assert outcome.code == 0, (words, outcome.err)
        (group,) = written(tmp_path / f"out{number}")["groups"]
        found.append((sorted(group["runs"]), sorted(group["seeds"]), group["numbers"].keys()))
    assert all(each == found[0] for each in found) and found[0][1] == [0, 1, 2, 10]
    notes = written(tmp_path / f"out{len(ways) - 1}")["notes"]
    assert notes == ["Named more than once, and counted once: s/0, s/../s/1."]
    outcome = run("compare", "s")
    (folder,) = (tmp_path / "outputs").iterdir()
    assert folder.name.startswith("compare-20") and written(folder)
    assert "compare.json, .csv, .md and .png" in outcome.out


def test_seeds_group_and_nothing_else_does(run: Run, tmp_path: Path) -> None:
    cases: dict[str, dict[str, Any]] = {
        "base": {},
        "seed": {"seed": 1, "task__seed": 1},
        "task": {"task__eval_seed": 5},
        "device": {"device": "cuda:1"},
        "typed": {"maml__inner_lr": 0.02},
        "older": {"maml__inner_momentum": 0.0},  # as is the default of runs that have it not
    }
    for name, changes in cases.items():
        change_config(sinusoid(tmp_path / name, best__loss=1.0, test__loss=2.0), **changes)
    outcome = run("compare", *cases, "folder=out")
    assert outcome.code == 0, outcome.err
    found = written(tmp_path / "out")
    by_runs = {tuple(group["runs"]): group["settings"] for group in found["groups"]}
    assert set(by_runs) == {("base", "seed", "task"), ("device",), ("older",), ("typed",)}
    assert {tuple(settings) for settings in by_runs.values()} == {("maml.inner_lr",)}
    crossed, note = found["notes"]
    assert crossed.startswith("Runs that share seed are no independent") and "(2 in all)" in crossed
    assert note.startswith("Settings and seeds of another run") and "device, older" in note
    assert "eval" not in (tmp_path / "out" / "compare.md").read_text()


def test_order_is_by_validation_and_never_by_tests(run: Run, tmp_path: Path) -> None:
    for rate, best, test in ((0.1, 0.5, 0.9), (0.2, 0.8, 0.1), (0.3, math.nan, 0.99)):
        place = sinusoid(tmp_path / f"r{rate}", best__accuracy=best, test__accuracy=test)
        change_config(place, maml__inner_lr=rate)
    cut = sinusoid(tmp_path / "cut")
    (cut / "results.json").unlink()
    change_config(cut, maml__inner_lr=0.4)
    assert run("compare", "cut", "r0.1", "r0.2", "r0.3", "folder=out").code == 0
    found = written(tmp_path / "out")
    assert [group["runs"] for group in found["groups"]] == [["r0.2"], ["r0.1"], ["r0.3"], ["cut"]]
    assert found["order"].endswith("the highest first; runs that are not finished come last.")
    assert any("Not finite" in note and "best/accuracy" in note for note in found["notes"])
    assert found["groups"][2]["numbers"]["best/accuracy"]["mean"] is None
    assert run("compare", "r0.1", "r0.2", "folder=no").code == 0
    give_results(tmp_path / "r0.1", best__loss=0.5, test__accuracy=0.9)
    assert run("compare", "r0.1", "r0.2", "folder=mixed").code == 0
    order = written(tmp_path / "mixed")["order"]
    assert order.endswith("were found: not all have the same validation score.")
    give_results(tmp_path / "r0.1", best__step=5.0, test__accuracy=0.1)
    give_results(tmp_path / "r0.2", best__step=9.0, test__accuracy=0.9)
    assert run("compare", "r0.1", "r0.2", "folder=steps").code == 0
    found = written(tmp_path / "steps")
    assert [group["runs"] for group in found["groups"]] == [["r0.1"], ["r0.2"]]
    assert "were found" in found["order"]


def test_unfinished_runs_count_in_no_mean(run: Run, tmp_path: Path) -> None:
    for seed, value in enumerate((1.0, 3.0)):
        place = sinusoid(tmp_path / f"s{seed}", best__loss=value, test__loss=value)
        change_config(place, seed=seed)
    copy_of(SAVED / "v1" / "meta_sinusoid-interrupted", tmp_path / "cut")
    change_config(tmp_path / "cut", seed=2)
    change_config(sinusoid(tmp_path / "more", best__loss=9.0), seed=3, trainer__steps=90)
    (tmp_path / "young").mkdir()
    shutil.copy(tmp_path / "s0" / "config.yaml", tmp_path / "young")
    change_config(tmp_path / "young", seed=4)
    outcome = run("compare", "s0", "s1", "cut", "more", "young", "folder=out")
    assert outcome.code == 0, outcome.err
    groups = written(tmp_path / "out")["groups"]
    states = {tuple(group["runs"]): group["state"] for group in groups}
    assert states == {
        ("s0", "s1"): "finished",
        ("cut",): "not finished: step 20 of 40",
        ("more",): "not finished: step 40 of 90",
        ("young",): "not finished: no step recorded",
    }
    assert groups[0]["numbers"]["test/loss"]["mean"] == 2.0
    assert all(not group["numbers"] for group in groups[1:])
    assert "not finished: step 20 of 40" in outcome.out


def test_runs_from_before_there_was_a_headline(run: Run, tmp_path: Path) -> None:
    names = [str(path) for path in sorted(SAVED.glob("v[1-7]/*-finished"))]
    assert run("compare", *names, "folder=out").code == 0
    found = written(tmp_path / "out")
    numbers = {group["runs"][0]: group["numbers"] for group in found["groups"]}
    assert len(numbers) == len(names) and all(numbers.values()) and not found["passed_over"]
    old = SAVED / "v1" / "meta_pictures-finished"
    results = results_of(str(old))
    of_old = numbers[str(old)]
    assert of_old["best/accuracy_after"]["mean"] == results["validation/accuracy_after"]
    last = results["test"]["transductive"]["accuracy"][-1]
    assert of_old["test/accuracy"]["mean"] == last["mean"]


def test_different_code_is_said(run: Run, tmp_path: Path) -> None:
    for rate, code in ((0.1, "a" * 40), (0.2, "b" * 40)):
        place = sinusoid(tmp_path / f"r{rate}", best__loss=rate)
        change_config(place, maml__inner_lr=rate)
        origin = {"git": {"revision": code, "dirty": rate == 0.2}}
        (place / "provenance.json").write_text(json.dumps(origin))
    assert run("compare", "r0.1", "r0.2", "folder=out").code == 0
    (note,) = written(tmp_path / "out")["notes"]
    assert "aaaaaaa (1 run), bbbbbbb+ (1 run)" in note


def test_the_table_fits_the_terminal(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rate in (0.1, 0.2):
        numbers = {f"test__number{n}": rate for n in range(12)}
        place = sinusoid(tmp_path / f"r{rate}", best__loss=1.0, **numbers)
        change_config(place, maml__inner_lr=rate)
    for width in (40, 70, 400):
        monkeypatch.setenv("COLUMNS", str(width))
        outcome = run("compare", "r0.1", "r0.2", f"folder=out{width}")
        table = outcome.out.partition("\n\n")[2].rpartition("\n\n")[0]
        assert max(map(len, table.splitlines())) <= width
        assert all(f"test/number{n}" in table for n in range(12))
        assert table.count("#") == table.count("\n1  ") == len(table.split("\n\n"))
        assert (len(table.split("\n\n")) == 1) == (width == 400)
