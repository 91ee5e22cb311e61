"""``resume=auto``: the same command starts a run, goes on with it, and shows it when it is over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.support.commands import TINY, Outcome

Run = Callable[..., Outcome]
AUTO = ("hydra.run.dir=run", "resume=auto")
QUICK = ["trainer.steps=4", "trainer.eval_every=2", "trainer.progress=false", "device=cpu"]
KINDS = {
    "tasks": TINY,
    "learner": ["learner=fomaml", *TINY],
    "experiment": ["experiment=sinusoid", *TINY[2:]],
    "members": ["trainer=ensemble", "trainer.members=2", "model.hidden=[4]", *QUICK],
    "samples": ["trainer=per_sample", "trainer.batch_size=16", "model.hidden=[4]", *QUICK],
    "null": ["trainer=ensemble", "trainer.members=2", "data.wrong_labels=null", *QUICK],
    "overridden": ["experiment=digits_ensemble", "trainer.members=2", "model.hidden=[4]", *QUICK],
    "added": ["trainer=ensemble", "trainer.members=2", "+optimizer.weight_decay=0.1", *QUICK],
}


def _steps(folder: Path) -> int:
    return int(json.loads((folder / "results.json").read_text())["steps"])


@pytest.mark.parametrize("words", KINDS.values(), ids=KINDS)
def test_the_same_command_starts_and_goes_on(run: Run, tmp_path: Path, words: list[str]) -> None:
    first = run("train", *words, *AUTO)
    assert first.code == 0, first.err
    kept = (tmp_path / "run" / "config.yaml").read_text()
    again = run("train", *words, *AUTO)
    assert again.code == 0, again.err
    assert "finished at step 4; its files stay as they are" in again.out
    assert (tmp_path / "run" / "config.yaml").read_text() == kept
    longer = run("train", *words, "trainer.steps=6", *AUTO)
    assert longer.code == 0, longer.err
    assert _steps(tmp_path / "run") == 6


def test_what_an_experiment_sets_may_be_set_otherwise(run: Run, tmp_path: Path) -> None:
    """By the same words each time, also where it is what the run's module was made by."""
    own = tmp_path / "own" / "experiment" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\ndefaults: [{override /trainer: ensemble}]\n"
                   "trainer: {members: 3}\n")  # fmt: skip
    words = ["--config-dir=own", "experiment=mine", "trainer.members=2", "model.hidden=[4]", *QUICK]
    for _ in range(2):
        outcome = run("train", *words, *AUTO)
        assert outcome.code == 0, outcome.err
    assert OmegaConf.load("run/config.yaml").trainer.members == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["maml.inner_lr=0.02", *AUTO], "the settings that run was started with are needed"),
        (["resume=auto"], "hydra.run.dir=<folder of the run> is needed beside it"),
        (["-m", *AUTO], "resume='auto': no sweep (-m or --multirun) is needed beside it"),
        (["model=mlp", "model.hidden=[9]", "resume=run"], "model='mlp': a resumed run keeps its"),
        (["model=conv4", "resume=run"], "model='conv4': a resumed run keeps its settings"),
        (["+model={dropout: 0.5}", "resume=run"], "a resumed run keeps its settings"),
        (["trainer={steps: 9}", "resume=run"], "a resumed run keeps its settings"),
        (["~task", "resume=run"], "a resumed run keeps its settings"),
        (["learner=protonet", "resume=run"], "learner='protonet': a resumed run keeps"),
    ],
)
def test_another_run_is_refused(run: Run, tmp_path: Path, words: list[str], sentence: str) -> None:
    assert run("train", *TINY, *AUTO).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*")}
    given = [] if "resume=run" in words else TINY
    outcome = run("train", *given, *words)
    assert outcome.code == 2 and sentence in outcome.err, outcome.err
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*")} == before


def test_settings_that_are_those_of_the_run_may_be_given_beside_it(run: Run) -> None:
    assert run("train", *TINY, "hydra.run.dir=run").code == 0
    outcome = run("train", *TINY, "trainer.steps=6", "resume=run")
    assert outcome.code == 0, outcome.err
    assert OmegaConf.load("run/config.yaml").model.hidden == [8]


def test_a_run_that_ended_before_it_had_said_what_it_is_starts_anew(
    run: Run, tmp_path: Path
) -> None:
    """Killed between what tells of its origin and its configuration, which makes it a run."""
    assert run("train", *TINY, *AUTO).code == 0
    wanted = _steps(tmp_path / "run")
    for path in (tmp_path / "run").iterdir():
        if path.is_file() and path.name != "provenance.json":
            path.unlink()
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.unlink()
    outcome = run("train", *TINY, *AUTO)
    assert outcome.code == 0, outcome.err
    assert _steps(tmp_path / "run") == wanted
    assert not list((tmp_path / "run").glob("provenance-*"))
