"""Rows are run once, gone on with where they were stopped, and kept as their runs tell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from metalearn.errors import DataError
from metalearn.ledger import ROWS, Commands, Interrupted, RowRunner
from tests.support.commands import Outcome

ROW = ROWS["sinusoid"]
SHORT = ("trainer.steps=4", "trainer.meta_batch=2", "trainer.validation_tasks=2", "test_tasks=2")


def in_this_process(run: Callable[..., Outcome]) -> Callable[[Sequence[str]], int]:
    """Commands without a process of their own."""

    def call(words: Sequence[str]) -> int:
        outcome = run(words[0], *words[1:])
        assert "Traceback" not in outcome.err
        return outcome.code

    return call


def test_a_row_is_trained_tested_and_kept(run: Callable[..., Outcome], tmp_path: Path) -> None:
    runner = RowRunner(tmp_path, Commands([], in_this_process(run)), SHORT)
    assert runner.state(ROW, 0) == "not run"
    found = runner.run(ROW, 0)
    assert (found.row, found.seed, found.steps, found.tasks) == ("sinusoid", 0, 4, 600)
    assert found.monitor == "loss_after" and found.seconds > 0
    assert found.cpu_seconds is not None and found.cpu_seconds > 0
    assert found.curve[-1][0] == 4 and all(value > 0 for _, value in found.curve)
    tested = json.loads((runner.place(ROW, 0) / "evaluation-test.json").read_text())
    last = tested["scores"]["transductive"]["loss"][-1]
    assert found.scores["transductive"].mean == last["mean"]
    assert runner.state(ROW, 0) == "finished"
    trained = (runner.place(ROW, 0) / "train.log").read_text()
    assert runner.run(ROW, 0).scores == found.scores  # tested again, not trained
    assert (runner.place(ROW, 0) / "train.log").read_text() == trained


def test_what_was_stopped_goes_on(run: Callable[..., Outcome], tmp_path: Path) -> None:
    words: list[Sequence[str]] = []

    def call(given: Sequence[str]) -> int:
        words.append(given)
        if len(words) == 1:  # as a run that a signal ended in its first step
            (tmp_path / "runs" / "sinusoid-seed0").mkdir(parents=True)
            (tmp_path / "runs" / "sinusoid-seed0" / "config.yaml").write_text("{}")
        return 0

    runner = RowRunner(tmp_path, Commands([], call))
    for _ in range(2):
        with pytest.raises(Interrupted, match="^sinusoid, seed 0: stopped; the same command"):
            runner.run(ROW, 0)
    assert runner.state(ROW, 0) == "begun"
    assert words[0][:3] == ["train", "experiment=sinusoid", "seed=0"]
    assert words[1] == ["train", f"resume={tmp_path / 'runs' / 'sinusoid-seed0'}"]


def test_a_command_that_fails_is_named(tmp_path: Path) -> None:
    runner = RowRunner(tmp_path, Commands([], lambda words: 3))
    with pytest.raises(
        DataError, match=r"^`metalearn train experiment=sinusoid .*ended with code 3"
    ):
        runner.run(ROW, 0)
    assert not runner.kept(ROW, 0).exists()


@pytest.mark.parametrize("code", [130, 143, -9])
def test_a_command_that_a_signal_ended_goes_on_next_time(code: int, tmp_path: Path) -> None:
    runner = RowRunner(tmp_path, Commands([], lambda words: code))
    with pytest.raises(Interrupted, match="^`metalearn train experiment=sinusoid .*was stopped"):
        runner.run(ROW, 0)
    assert not runner.kept(ROW, 0).exists()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_signal_is_handed_on_and_waited_for(tmp_path: Path) -> None:
    child = (
        "import pathlib, signal, sys, time\n"
        "def end(*_): pathlib.Path('heard').touch(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(60)\n"
    )
    parent = (
        "import sys\nfrom metalearn.ledger.runner import call_to_its_end\n"
        f"print(call_to_its_end([sys.executable, '-c', {child!r}]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", parent], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
    )
    started = time.monotonic()
    while not (tmp_path / "ready").exists() and time.monotonic() - started < 60:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert out.strip() == b"0" and (tmp_path / "heard").exists()


def test_the_command_lists_rows(run: Callable[..., Outcome]) -> None:
    outcome = run("reproduce", "--list")
    assert outcome.code == 0
    assert outcome.out.startswith(f"{ROW.name} ")  # the cheapest
    assert "ProtoNet; paper 98.8; not run yet; about" in outcome.out
    assert run("reproduce", "sinusoidal").code == 2
    assert "did you mean sinusoid?" in run("reproduce", "sinusoidal").err
    assert run("reproduce", "--lst").code == 2
    assert run("reproduce", "--page").code == 0 and Path("outputs/ledger/ledger.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--page", "sinusoid"], "row='sinusoid': none is needed with --page"),
        (["--page", "--list"], "not allowed with argument"),
        (["--list", "--device", "cpu"], "--device='cpu': nothing is trained"),
    ],
)
def test_what_would_be_ignored_is_refused(
    arguments: list[str], sentence: str, run: Callable[..., Outcome]
) -> None:
    outcome = run("reproduce", *arguments)
    assert outcome.code == 2 and sentence in outcome.err and outcome.err.count("\n") == 1
    assert not Path("outputs").exists()
