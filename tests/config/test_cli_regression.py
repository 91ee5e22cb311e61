"""The command line with data=waves: trained, tested, evaluated, diagnosed, loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn import load
from metalearn.data import waves_data
from metalearn.evaluation import RegressionStatistics
from tests.support.builders import without_ensemble_figures
from tests.support.commands import Outcome, call

Run = Callable[..., Outcome]

WAVES = [
    "data=waves",
    "data.samples=120",
    "model.hidden=[6]",
    "trainer.steps=4",
    "trainer.batch_size=16",
    "trainer.eval_every=2",
    "trainer.checkpoint_every=2",
    "trainer.log_every=2",
    "trainer.progress=false",
]
MEMBERS = ["trainer=ensemble", "trainer.members=2", "trainer.engine=batched"]
WAYS = {
    "members": ([*MEMBERS, "data.targets=2"], 2, 4),
    "means alone": ([*MEMBERS, "trainer.loss=mse"], 1, 1),
    "one module": (["trainer=per_sample", "trainer.diagnostics=[]"], 1, 2),
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    without_ensemble_figures(monkeypatch)

    def command(script: str, *arguments: str) -> Outcome:
        found = call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert found.code == 0, found.err
        return found

    return command


@pytest.mark.parametrize("way", WAYS)
def test_a_run_from_training_to_diagnosis(way: str, run: Run, tmp_path: Path) -> None:
    given, targets, outputs = WAYS[way]
    folder = tmp_path / "run"
    trained = run("train", *WAVES, *given, f"hydra.run.dir={folder}")
    assert "coverage" in trained.out and "aleatoric" in trained.out
    results: Any = json.loads((folder / "results.json").read_text())["test"]["test"]
    assert {"nll", "rmse", "coverage", "aleatoric", "epistemic"} == set(results["ensemble"])

    trainer: Any = load(folder)
    x, y = waves_data(samples=120, targets=targets).part("test")
    found = trainer.predict(x)
    assert found.shape[1:] == (24, outputs)
    statistics = RegressionStatistics(len(found), targets)
    statistics.update(found, y)
    assert results["ensemble"] == pytest.approx(statistics.compute().ensemble(), rel=1e-5)

    run("evaluate", f"run={folder}", "split=validation")
    scores = json.loads((folder / "evaluation-validation.json").read_text())["scores"]
    assert scores["samples"] == 24 and len(scores["members"]) == len(found)

    run("diagnose", f"run={folder}", "samples=8", "what=[gradient_norms,fisher]")
    diagnosis = json.loads((folder / "diagnosis-validation.json").read_text())
    (findings,) = diagnosis["findings"].values()
    assert not diagnosis["left_out"] and set(findings) == {"gradient_norms", "fisher"}


def test_a_resumed_run_goes_on_with_its_loss(run: Run, tmp_path: Path) -> None:
    short, whole = tmp_path / "short", tmp_path / "whole"
    schedule = ["trainer.schedule=constant", "trainer.loss=mse"]
    run("train", *WAVES, *MEMBERS, *schedule, f"hydra.run.dir={short}")
    run("train", *WAVES, *MEMBERS, *schedule, "trainer.steps=6", f"hydra.run.dir={whole}")
    run("train", f"resume={short}", "trainer=ensemble", "trainer.steps=6")
    one, other = (load(folder, which="last").module.state_dict() for folder in (short, whole))
    assert all(torch.equal(one[name], value) for name, value in other.items())
