"""What a comparison says of runs that could be taken for what they are not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalearn.cli.comparison.comparing import Comparison, compared
from metalearn.cli.comparison.files import write_comparison
from metalearn.cli.comparison.finding import find_runs
from metalearn.cli.comparison.runs import ComparedRun
from metalearn.cli.comparison.settings import differing_settings
from metalearn.cli.words import with_words
from metalearn.errors import SettingError
from metalearn.evaluation.seeds import mean_over_seeds
from tests.config.test_sweeps import write_run
from tests.support.commands import TINY, Outcome


def run_of(name: str, config: Mapping[str, Any], seed: int = 0, **numbers: float) -> ComparedRun:
    named = {key.replace("__", "/"): value for key, value in numbers.items()}
    return ComparedRun(name, {"seed": seed, "trainer": {}, **config}, seed, named)


# --- own losses


@pytest.mark.parametrize("score", ["best__objective", "best__member_objective", "best__nll"])
@pytest.mark.parametrize("other", ["focal", {"name": "focal", "gamma": 3}, None])
def test_losses_of_different_kinds_order_nothing(score: str, other: Any) -> None:
    losses = [{"name": "focal", "gamma": 2}, other, {"name": "focal", "gamma": 2}]
    runs = [
        run_of(str(n), {"trainer": {"loss": loss, "steps": n}}, **{score: 3.0 - n})
        for n, loss in enumerate(losses)
    ]
    found = compared(runs)
    own = score.endswith("objective")
    assert [row.runs[0].name for row in found.rows] == (["0", "1", "2"] if own else ["2", "1", "0"])
    assert ("these differ ({name: focal, gamma: 2}, " in found.order) == own
    alike = compared([runs[0], runs[2]])
    assert [row.runs[0].name for row in alike.rows] == ["2", "0"]


# --- settings that a run lacks


def test_settings_outside_groups_that_a_run_lacks_are_as_the_default() -> None:
    new = {"seed": 0, "device": "cpu", "test_tasks": 4, "init_from": None, "init_skip": []}
    old = {name: new[name] for name in ("seed", "device", "test_tasks")}
    assert differing_settings([new, old]) == [{}, {}]
    started = new | {"init_from": "weights.pt"}
    found = differing_settings([started, old, new])
    assert found == [{"init_from": v} for v in ("weights.pt", None, None)]


@pytest.mark.parametrize("group", ["..", "../conf", "/etc", "a/b", "task/../model", "", "~"])
def test_a_group_of_another_name_than_a_folders_reads_nothing(
    group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"trainer": {}, group: {"_target_": "own", "x": 1}}
    other = {"trainer": {}, group: {"_target_": "own", "x": 2}}
    asked: list[str] = []
    glob = Path.glob

    def listen(self: Path, pattern: str) -> Any:
        asked.append(str(self))
        return glob(self, pattern)

    monkeypatch.setattr(Path, "glob", listen)
    assert differing_settings([config, other]) == [{f"{group}.x": 1}, {f"{group}.x": 2}]
    assert not any(".." in path or path.startswith("/etc") for path in asked)


# --- seeds


def test_a_setting_that_follows_a_seed_is_a_setting(tmp_path: Path) -> None:
    runs = [run_of(str(n), {"maml": {"inner_lr": n / 10}}, n, best__loss=n) for n in (1, 2)]
    typed = [{"task.way": "5", "maml.inner_lr": "${seed}"}] * 2
    found = compared(runs, typed=typed)
    assert [dict(row.settings) for row in found.rows] == [
        {"maml.inner_lr": 0.1},
        {"maml.inner_lr": 0.2},
    ]
    plain = compared([run_of(str(n), {}, n, best__loss=n) for n in (1, 2)], typed=[{}, {}])
    assert len(plain.rows) == 1 and plain.settings == []


def _crossed(pairs: list[tuple[int, int]]) -> Comparison:
    return compared(
        [
            run_of(f"{a}{b}", {"task": {"_target_": "t", "seed": b}}, a, best__loss=a * 10 + b**2)
            for a, b in pairs
        ]
    )


def test_runs_that_share_a_seed_are_no_independent_repetitions() -> None:
    (row,) = (found := _crossed([(a, b) for a in (0, 1, 3) for b in (5, 6, 7, 8)])).rows
    expected = mean_over_seeds([a * 10 + (25 + 36 + 49 + 64) / 4 for a in (0, 1, 3)])
    assert row.numbers["best/loss"] == pytest.approx(tuple(expected))
    assert any("share seed are no independent" in n and "(3 in all)" in n for n in found.notes)
    (row,) = (found := _crossed([(a, b) for a in (0, 1, 3) for b in (5, 6)])).rows
    expected = mean_over_seeds([40 / 3 + b**2 for b in (5, 6)])
    assert row.numbers["best/loss"] == pytest.approx(tuple(expected))
    assert any("share task.seed" in note for note in found.notes)


@pytest.mark.parametrize("pairs", [[(0, 5), (1, 6), (2, 7)], [(0, 5), (1, 5)], [(4, 5), (4, 6)]])
def test_runs_of_seeds_that_go_together_are_repetitions(pairs: list[tuple[int, int]]) -> None:
    (row,) = (found := _crossed(pairs)).rows
    expected = mean_over_seeds([a * 10 + b**2 for a, b in pairs])
    assert row.numbers["best/loss"] == pytest.approx(tuple(expected))
    assert not any("independent" in note for note in found.notes)


# --- what cannot be read or drawn


def test_folders_that_cannot_be_looked_into_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sweep/a", "sweep/shut", "sweep/z", "alone"):
        write_run(tmp_path / name, 0, 0.5)
    exists = Path.exists

    def refuse(self: Path, **rest: Any) -> bool:
        if "shut" in self.parts or "alone" in self.parts:
            raise PermissionError(13, "Permission denied", str(self))
        return exists(self, **rest)

    monkeypatch.setattr(Path, "exists", refuse)
    found = find_runs([tmp_path / "sweep", tmp_path / "alone"])
    assert [Path(run.name).name for run in found.runs] == ["a", "z"]
    shut = {str(tmp_path / name) for name in ("sweep/shut", "alone")}
    assert set(found.passed_over) == shut
    assert set(found.passed_over.values()) == {"it cannot be looked into: Permission denied"}


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(SettingError, match="no such name can be there: File name too long"):
        find_runs(["x" * 5000])


@pytest.mark.parametrize(
    "value",
    ["!!binary aGVsbG8=", "!!set {a, b}", "!!timestamp 2020-01-01", "!!omap [a: 1]", "!own 3",
     "!!python/tuple [1]", "{!!binary aGVsbG8=: 1}", "! x"],
)  # fmt: skip
def test_a_tag_is_passed_over_and_named(value: str, run: Callable[..., Outcome]) -> None:
    for name in ("whole", "odd"):
        write_run(Path(name), 0, 0.5)
    with Path("odd", "config.yaml").open("a") as file:
        file.write(f"extra: {value}\n")
    outcome = run("compare", "whole", "odd", "folder=out")
    assert outcome.code == 0, outcome.err
    passed = "Passed over: odd: config.yaml: this file cannot be read as a run's configuration"
    assert passed in outcome.out and "1 run\n" in outcome.out
    with Path("whole", "config.yaml").open("a") as file:
        file.write("extra: {a: !!str 3, b: !!float 1, c: !!seq [!!null '', !!bool true]}\n")
    assert run("compare", "whole", "folder=more").code == 0


def test_a_figure_that_fails_leaves_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any, **rest: Any) -> None:
        raise ZeroDivisionError("no\nfont")

    monkeypatch.setattr("metalearn.cli.comparison.files.comparison_figure", fail)
    (tmp_path / "it.png").write_bytes(b"of another table")
    said = write_comparison(tmp_path, "it", compared([run_of("a", {}, best__loss=math.pi)]))
    assert "the figure could not be drawn (no" in said and "\n" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it.csv", "it.json", "it.md"]


def test_a_word_that_is_an_options_value_as_well_stays_there() -> None:
    Path("a").mkdir(exist_ok=True)
    try:
        for given in (["a", "--config-dir", "a"], ["--config-dir", "a", "a"]):
            assert with_words(given, "runs") == ["--config-dir", "a", "runs=['a']"]
    finally:
        Path("a").rmdir()


# --- sweeps


def test_a_run_whose_tests_diverge_does_not_stop_a_sweep(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from metalearn.cli.commands import train
    from metalearn.errors import NonFiniteError

    reports, seen = train._test_reports, []

    def fail(trainer: Any, count: int) -> Any:
        seen.append(count)
        if len(seen) == 1:
            raise NonFiniteError("outputs on test tasks are not finite")
        return reports(trainer, count)

    monkeypatch.setattr("metalearn.cli.commands.train._test_reports", fail)
    monkeypatch.setattr("metalearn.cli.commands.train.provenance", dict)
    given = [*TINY, "trainer.steps=1", "trainer.compile=never", "hydra.sweep.subdir=s${seed}"]
    outcome = run("train", "-m", "seed=3,0", *given, "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["groups"]
    states = {name: group["state"] for group in found for name in group["runs"]}
    assert states == {"s0": "finished", "s3": "not finished: step 1 of 1"}
    seen.clear()
    alone = run("train", *given[:-1], "hydra.run.dir=alone")
    assert alone.code == 1 and "error: outputs on test tasks" in alone.err
    seen.clear()
    none = run("train", "-m", "seed=3", *given, "hydra.sweep.dir=none")
    assert none.code == 1 and "error: none: no run of this sweep is finished" in none.err
    assert "not finished: step 1 of 1" in none.out


def test_runs_are_named_by_the_folders_that_they_are_in(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever their numbers: folder 1 is that of job 0 here."""
    monkeypatch.setattr("metalearn.cli.commands.train.provenance", dict)
    given = [*TINY, "trainer.steps=1", "trainer.compile=never", "hydra.sweep.subdir=${task.shot}"]
    given = [word for word in given if not word.startswith("task.shot=")]
    outcome = run("train", "-m", "task.shot=1,0", *given[:-1], "hydra.sweep.dir=no")
    assert outcome.code == 2  # 0 shots
    outcome = run("train", "-m", "task.shot=2,1", *given, "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    for group in json.loads((tmp_path / "sweep" / "sweep.json").read_text())["groups"]:
        (name,) = group["runs"]
        saved = yaml.safe_load((tmp_path / "sweep" / name / "config.yaml").read_text())
        assert str(saved["task"]["shot"]) == group["settings"]["task.shot"] == name
