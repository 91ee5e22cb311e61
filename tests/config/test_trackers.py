"""``tracker=`` on the command line: where records go, refused where it cannot work."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from metalearn.tracking.backends import BACKENDS
from tests.support.commands import ROOT, TINY, Outcome

Run = Callable[..., Outcome]
SAVED = ROOT / "tests" / "saved_runs" / "v1" / "meta_sinusoid-interrupted"


def _numbers(folder: Path) -> list[tuple[str, str, str]]:
    """Step, time and name of each number of the JSON lines."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        (str(line["step"]), str(line["time"]), name)
        for line in lines
        for name in line
        if name not in ("step", "time")
    ]


def _table(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(row["step"], row["time"], row["name"]) for row in csv.DictReader(file)]


def _saved(folder: Path) -> Any:
    return OmegaConf.load(folder / "config.yaml")


def test_several_at_once_and_none(run: Run, tmp_path: Path) -> None:
    both = tmp_path / "both"
    outcome = run("train", *TINY, "tracker=[csv,tensorboard]", f"hydra.run.dir={both}")
    assert outcome.code == 0, outcome.err
    assert f"dashboard:  {both / 'metrics.csv'}; tensorboard --logdir {tmp_path}" in outcome.out
    assert list(both.glob("*tfevents*")) and _table(both) == _numbers(both)
    assert _saved(both).tracker == ["csv", "tensorboard"]
    none = tmp_path / "none"
    outcome = run("train", *TINY, "tracker=null", f"hydra.run.dir={none}")
    assert outcome.code == 0, outcome.err
    assert f"dashboard:  {none / 'metrics.jsonl'}" in outcome.out
    assert not list(none.glob("*tfevents*")) and not (none / "metrics.csv").exists()
    assert (none / "results.json").exists() and _numbers(none)


def test_tensorboard_alone_is_the_default(run: Run, tmp_path: Path) -> None:
    assert run("train", *TINY, "hydra.run.dir=one").code == 0
    names = {path.name.partition(".tfevents")[0] for path in (tmp_path / "one").iterdir()}
    wanted = {"checkpoints", "config.yaml", "events.out", "metrics.jsonl", "provenance.json"}
    assert names == wanted | {"results.json", "train.log"}
    assert _saved(tmp_path / "one").tracker == "tensorboard"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("tracker=csvs", "tracker='csvs': one of tensorboard, csv, wandb, mlflow"),
        ("tracker=", "tracker='': one of tensorboard, csv, wandb, mlflow"),
        ("tracker=[]", "tracker=[]: at least one of tensorboard, csv, wandb, mlflow"),
        ("tracker=[csv,csv]", "csv is there twice"),
        ("tracker=1", "tracker=1: one of tensorboard"),
        ("tracker={csv: true}", "tracker={'csv': True}: one of tensorboard"),
        ("tracker=mine.Backend", "tracker='mine.Backend': one of tensorboard"),
        ("tracker=csv,tensorboard", "a list is in brackets"),
        ("tracker.name=csv", "tracker.name: there is no such setting"),
        ("trainer.tracker=csv", "trainer.tracker: there is no such setting"),
    ],
)
def test_what_is_no_tracker_is_refused(given: str, said: str, run: Run, tmp_path: Path) -> None:
    outcome = run("train", *TINY, given, "hydra.run.dir=new")
    assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", [n for n, kind in BACKENDS.items() if kind.package is not None])
def test_a_missing_package_is_named(
    name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    missing = BACKENDS[name].package
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *rest: None if n == missing else found(n, *rest)
    )
    outcome = run("train", *TINY, f"tracker=[csv,{name}]", "hydra.run.dir=new")
    assert outcome.code == 2 and not (tmp_path / "new").exists()
    assert f"tracker='{name}': the package {missing} is needed" in outcome.err
    assert f"pip install 'torch-metalearn[{name}]'" in outcome.err


def test_a_run_that_goes_on_keeps_its_tracker_or_takes_another(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    assert run("train", *TINY, "tracker=csv", f"hydra.run.dir={folder}").code == 0
    assert run("train", f"resume={folder}", "trainer.steps=6").code == 0
    assert {step for step, _, _ in _table(folder)} == {"0", "1", "2", "4", "6"}
    assert _table(folder) == _numbers(folder) and not list(folder.glob("*tfevents*"))
    outcome = run("train", f"resume={folder}", "trainer.steps=8", "tracker=tensorboard")
    assert outcome.code == 0, outcome.err
    assert list(folder.glob("*tfevents*")) and _saved(folder).tracker == "tensorboard"
    outcome = run("train", f"resume={folder}", "tracker=tensorbord")
    assert outcome.code == 2 and "did you mean tensorboard?" in outcome.err


def test_a_run_of_before_goes_on_in_tensorboard(run: Run, tmp_path: Path) -> None:
    for name, given in (("old", ()), ("table", ("tracker=csv",))):
        folder = tmp_path / name
        shutil.copytree(SAVED, folder)
        before = len(list(folder.rglob("*tfevents*")))
        outcome = run("train", f"resume={folder}", *given)
        assert outcome.code == 0, outcome.err
        assert len(list(folder.rglob("*tfevents*"))) == before + (not given)
        assert not given or _table(folder) == _numbers(folder)  # from its beginning
