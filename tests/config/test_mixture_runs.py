"""Runs on a mixture of sets: trained, gone on with, scored, loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from metalearn.cli import load_learner
from tests.support.commands import TINY, Outcome, call

Run = Callable[..., Outcome]
OWN = "source: folder, root: pictures, channels: 1, image_size: 16"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    draws = np.random.default_rng(0)
    for name in "abcdef":
        for index in range(4):
            path = tmp_path / "pictures" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 255, (16, 16), dtype=np.uint8)).save(path)

    def command(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    return command


def test_a_run_of_two_sets_goes_on_and_is_scored(run: Run) -> None:
    kept = [s for s in TINY if not s.startswith(("task", "model", "maml"))]
    sets = f"task.sets={{bright: {{{OWN}}}, dark: {{{OWN}, invert: true}}}}"
    settings = ["task=mixture", sets, "task.weights=[1,3]", "task.way=2", "model=conv4"]
    outcome = run("train", *kept, *settings, "model.filters=3", "hydra.run.dir=out")
    assert outcome.code == 0, outcome.err
    config = OmegaConf.load("out/config.yaml")
    assert list(config.task.sets) == ["bright", "dark"] and config.task.weights == [1, 3]
    outcome = run("train", "resume=out", "trainer.steps=6")
    assert outcome.code == 0, outcome.err
    outcome = run("evaluate", "run=out", "tasks=6")
    assert outcome.code == 0, outcome.err
    scores = json.loads(Path("out/evaluation-test.json").read_text())["scores"]["transductive"]
    parts = scores["by_set"]
    assert list(parts) == ["bright", "dark"] and sum(p["tasks"] for p in parts.values()) == 6
    mean = sum(p["tasks"] * p["accuracy"]["mean"] for p in parts.values()) / 6
    assert mean == pytest.approx(scores["accuracy"][-1]["mean"])
    assert f"{parts['dark']['tasks']} tasks of dark: " in outcome.out
    outcome = run("evaluate", "run=out", "tasks=6", "test_task=folder", "test_task.root=pictures",
                  "test_task.channels=1", "test_task.image_size=16")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert load_learner(Path("out")).module is not None
