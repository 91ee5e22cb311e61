"""``trainer=hyper`` on the command line: trained, gone on with, tested, evaluated, loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from metalearn import load
from metalearn.checkpoint import load_checkpoint
from metalearn.cli import load_module
from metalearn.data import MislabelledData
from metalearn.trainers import HYPER_KINDS, HyperTrainer
from tests.support.commands import Outcome, call

Run = Callable[..., Outcome]
TINY = [
    "trainer=hyper", "model.hidden=[8]", "model.activation=tanh", "trainer.steps=4",
    "trainer.inner.steps=5", "trainer.log_every=2", "trainer.eval_every=2",
    "trainer.checkpoint_every=2", "trainer.progress=false", "optimizer.lr=0.1",
]  # fmt: skip


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HyperTrainer, "_figure", lambda *given: None)

    def command(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    return command


def saved(folder: Path) -> Any:
    return load_checkpoint(folder / "checkpoints" / "last.pt")["module"]


@pytest.mark.parametrize("kind", HYPER_KINDS)
def test_a_run_goes_on_and_is_loaded(kind: str, run: Run, tmp_path: Path) -> None:
    folder, whole = tmp_path / "out", tmp_path / "whole"
    start = {"weight_decay": "warm", "learning_rates": "fresh"}.get(kind, "fixed")
    given = [*TINY, f"hyper={kind}", "data.wrong_labels=0.3", f"trainer.inner.start={start}"]
    outcome = run("train", *given, "trainer.steps=2", f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.err
    outcome = run("train", f"resume={folder}", "trainer.steps=4", "trainer.schedule=constant")
    assert outcome.code == 0 and "ordinary runs" in outcome.out, outcome.err
    with_it = [*given, "trainer.schedule=constant"]
    assert run("train", *with_it, f"hydra.run.dir={whole}").code == 0
    config = OmegaConf.load(whole / "config.yaml")
    assert {"data", "hyper", "model", "optimizer", "trainer"} <= set(config)
    assert "learner" not in config and "task" not in config
    results: Any = json.loads((whole / "results.json").read_text())
    test = results["test"]["test"]
    assert set(test) == {"check", "learnt", "plain"}
    assert test["check"]["error"] < 0.05 and not test["check"]["warning"]
    plain = test["plain"]["ensemble"]["accuracy"]
    assert results["headline"]["test/plain_accuracy"] == pytest.approx(plain)

    trainer: Any = load(whole)
    assert isinstance(trainer.data, MislabelledData)
    x, y = trainer.data.part("test")
    accuracy = float((load_module(whole)(x).argmax(-1) == y).double().mean())
    assert accuracy == pytest.approx(test["learnt"]["ensemble"]["accuracy"])


def test_a_resumed_run_is_that_which_never_stopped(run: Run, tmp_path: Path) -> None:
    folder, whole = tmp_path / "out", tmp_path / "whole"
    given = [*TINY, "trainer.schedule=constant", "trainer.inner.start=warm"]
    assert run("train", *given, "trainer.steps=2", f"hydra.run.dir={folder}").code == 0
    assert run("train", f"resume={folder}", "trainer.steps=4").code == 0
    assert run("train", *given, f"hydra.run.dir={whole}").code == 0
    one, other = saved(folder), saved(whole)
    assert set(one) == set(other) and any(name.startswith("carried.") for name in one)
    for name, value in one.items():
        assert torch.equal(value, other[name])
    outcome = run("train", f"resume={folder}", "trainer=hyper", "trainer.inner.steps=7")
    assert outcome.code == 2 and "trainer.inner.steps=7: 5 is needed, as resume=" in outcome.err
    further = ["trainer=hyper", "trainer.inner.steps=5", "trainer.steps=5"]
    assert run("train", f"resume={folder}", *further).code == 0
    assert run("evaluate", f"run={folder}", "split=validation").code == 0
    scores = json.loads((folder / "evaluation-validation.json").read_text())["scores"]
    assert scores["learnt"]["samples"] == 134  # half of the validation part
    for extra in ([], ["format=torch_export"]):
        outcome = run("export", f"run={folder}", *extra)
        assert outcome.code == 2 and "a run of trainer=meta, ensemble or per_sample" in outcome.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["trainer.inner.step=3"], "trainer.inner.step: there is no such setting; did you mean"),
        (["trainer.inner.lr=0"], "trainer.inner.lr=0: a finite number above 0"),
        (["hyper.initial=2"], "hyper.initial=2: a number in (0, 1) is needed"),
        (["hyper.boud=unit"], "hyper.boud: there is no such setting; did you mean hyper.bound"),
        (["hyper.bound=both"], "hyper.bound='both': one of unit, positive is needed"),
        (["hyper=distilled", "data=waves"], "trainer.loss='gaussian_nll': cross_entropy of"),
        (["trainer.method=first_order"], "trainer.method='first_order': another is needed"),
        (["+trainer.implicit.damp=1"], "trainer.implicit"),
        (["task.way=3"], "task.way=3: trainer=hyper has no use for it, but for data, hyper, "),
        (["data.member_weights={leave_out:0.1}"], "data.member_weights={'leave_out': 0.1}: null"),
        (["hyper=weights"], "hyper: there is no choice 'weights'"),
        (["trainer=ensemble", "hyper=distilled"], "trainer=ensemble has no use for it"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    given: list[str], said: str, run: Run, tmp_path: Path
) -> None:
    outcome = run("train", *TINY[:1], *given, f"hydra.run.dir={tmp_path / 'out'}")
    assert outcome.code == 2 and said in outcome.err, outcome.err
    assert "Traceback" not in outcome.err and not (tmp_path / "out").exists()
