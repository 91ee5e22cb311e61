"""Sweeps whose jobs run in processes of their own, and sweepers that look for a score."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.types import RunMode
from omegaconf import OmegaConf

from metalearn.cli import hydra_commands, run_results
from metalearn.cli.devices import device_of
from metalearn.cli.error_messages import JobError, one_sentence_errors
from metalearn.cli.launching import jobs
from metalearn.cli.launching.launches import Launch, note_launch
from metalearn.cli.launching.signals import StoppedJobs
from metalearn.errors import SettingError
from metalearn.trainers.loop.unvalidated import Unvalidated
from metalearn.trainers.meta.evaluator import MetaEvaluator
from tests.support.commands import ROOT, TINY, Outcome

pytest.importorskip(
    "hydra_plugins.hydra_joblib_launcher", reason="the extra sweep is not installed"
)

SWEEP = [*TINY, "trainer.compile=never", "maml.inner_lr=0.01,5000.0,0.02"]  # the second diverges


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MetaEvaluator, "_draw", lambda *given: None)
    monkeypatch.setattr("metalearn.cli.commands.train.provenance", dict)  # asks git: slow


_EARLY = """
import multiprocessing, os, signal, time
from metalearn.cli.launching.signals import (
    StoppedJobs, hand_on_signals, keep_signals, listen_as_job
)

def job():
    stopped = StoppedJobs()
    stopped.busy = True
    listen_as_job(stopped)
    time.sleep(60)

hand_on_signals()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.2)
late = multiprocessing.get_context("fork").Process(target=job)
late.start()
late.join(30)
print(late.exitcode, keep_signals())
"""


def test_a_signal_reaches_jobs_that_are_started_after_it() -> None:
    """In a program of its own, whose signals they are."""
    found = subprocess.run(
        [sys.executable, "-c", _EARLY], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.split() == ["143", "15"]


def headlines(sweep: Path) -> dict[str, Any]:
    found = sorted(sweep.glob("*/results.json"))
    return {path.parent.name: json.loads(path.read_text())["headline"] for path in found}


def numbers(run: Path) -> dict[tuple[int, str], Any]:
    """All that was recorded but times and what a figure is drawn of, by step and name."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {(line["step"], name): value for line in lines for name, value in line.items()}
    left = ("speed/", "seconds", "by_step", "time")
    return {key: value for key, value in found.items() if not any(k in key[1] for k in left)}


def test_side_by_side_jobs_are_those_that_come_one_after_another(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = run("train", "-m", *SWEEP, "hydra.sweep.dir=one")
    assert outcome.code == 0, outcome.err
    words = ["-m", *SWEEP, "hydra.sweep.dir=both", "hydra/launcher=joblib"]
    words.append("hydra.launcher.n_jobs=2")
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "METALEARN_KERNELS": "never"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *words],
        env=os.environ | own, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, both = tmp_path / "one", tmp_path / "both"
    assert set(headlines(one)) == {"0", "2"} and headlines(both) == headlines(one)
    for number in ("0", "1", "2"):
        assert numbers(both / number) == numbers(one / number) != {}
        command = json.loads((both / number / "provenance.json").read_text())["command"]
        assert command[1:] == words
    summaries = [json.loads((place / "sweep.json").read_text()) for place in (one, both)]
    assert summaries[0] == summaries[1] and len(summaries[0]["groups"]) == 3
    for text in (outcome.out, done.stdout):
        assert "diverged at step 0: " in text
    assert "diverged: step 0: " in (both / "1" / "train.log").read_text()
    ours = [line for line in done.stdout.splitlines() if "[HYDRA]" not in line]
    of_jobs = [line for line in ours[: ours.index("3 runs")] if line]
    assert {line[:4] for line in of_jobs} == {"[0] ", "[1] ", "[2] "}


# --- signals

WORKERS = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored behind a shell's &
from joblib import Parallel, delayed
from metalearn.cli.launching.signals import hand_on_signals, keep_signals, listen_as_job

def job(number, folder):
    from metalearn.cli.launching.jobs import _stopped as stopped
    listen_as_job(stopped)
    stopped.busy = True  # before the look, as metalearn's own jobs: a signal between is heard
    if stopped.received:
        stopped.busy = False
        return "not begun"
    try:
        open(f"{folder}/{number}", "w").close()
        for _ in range(1200):  # Python sees a signal between two of them
            time.sleep(0.1)
    except SystemExit as ending:
        return f"saved {ending.code}"
    finally:
        stopped.busy = False

hand_on_signals()
done = Parallel(n_jobs=2, pre_dispatch="all")(delayed(job)(n, sys.argv[1]) for n in range(4))
print(sorted(done), keep_signals())
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows")
@pytest.mark.parametrize("to_all", [False, True])
def test_a_signal_reaches_jobs_which_end_by_themselves(to_all: bool, tmp_path: Path) -> None:
    """Those that run, those that are about to, and those that wait; from a terminal to all."""
    number = signal.SIGINT if to_all else signal.SIGTERM
    process = subprocess.Popen(
        [sys.executable, "-c", WORKERS, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        while not any(tmp_path.iterdir()):
            assert process.poll() is None
        (os.killpg if to_all else os.kill)(process.pid, number)
        out = process.communicate(timeout=100)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    said = out.strip().rpartition(" ")
    assert said[2] == str(int(number)) and process.returncode == 0
    begun = len(list(tmp_path.iterdir()))
    found = yaml.safe_load(said[0])
    assert found[: 4 - begun] == ["not begun"] * (4 - begun)
    assert all(text.startswith("saved ") for text in found[4 - begun :])


# --- a job in a process of its own


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As job 7 of a sweep that another process has launched."""
    monkeypatch.setattr(Singleton, "_instances", dict(Singleton._instances))
    note_launch([])
    Launch().process = "another"
    Launch().command = ["train.py", "-m", "seed=0,1"]
    monkeypatch.setattr(jobs, "_stopped", StoppedJobs())
    runtime = SimpleNamespace(output_dir=str(tmp_path))
    config = SimpleNamespace(job=SimpleNamespace(num=7), runtime=runtime, mode=RunMode.MULTIRUN)
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: config))
    return


def as_job(function: Callable[[Any], Any]) -> Any:
    return jobs.run_job(lambda: function, OmegaConf.create({}))


@pytest.mark.usefixtures("elsewhere")
def test_a_job_has_the_command_and_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    before = list(sys.argv)

    def work(config: Any) -> float:
        print("a", end="")
        print("b")
        print("c", end="")
        assert sys.argv == ["train.py", "-m", "seed=0,1"] and not sys.stdout.isatty()
        return 0.5

    assert as_job(work) == 0.5
    assert capsys.readouterr().out == "[7] ab\n[7] c\n" and sys.argv == before


@pytest.mark.usefixtures("elsewhere")
def test_a_bar_that_is_drawn_again_and_again_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    held = []

    def work(config: Any) -> None:
        for step in range(1000):
            sys.stdout.write(f"\r{step:4d}/1000")
            held.append(len(sys.stdout._begun))  # type: ignore[attr-defined]
        print("\rdone", end="\r\n")
        print("a\rb")
        sys.stdout.write("torn\r")

    as_job(work)
    assert capsys.readouterr().out == "[7] done\n[7] b\n[7] torn\n"
    assert max(held) < 20


class _Lost(RuntimeError):
    __module__ = "joblib.externals"


@pytest.mark.parametrize("received", [None, signal.SIGTERM])
def test_what_a_lost_process_or_a_stop_began_with_is_said(
    received: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hydra_commands, "keep_signals", lambda: received)

    def lose() -> None:
        trace = "Job 3 failed with trace:\n----\nTraceback\n  in x\nZeroDivisionError: deep\n"
        raise _Lost(trace) from OSError("no memory")

    with pytest.raises(SystemExit) as ending, one_sentence_errors():
        hydra_commands._call(lose)
    said = capsys.readouterr().err
    assert ending.value.code == (1 if received is None else 143)
    assert said.count("\n") == 1 and "Job 3 failed" in said and "ZeroDivisionError: deep" in said
    assert ("no memory" in said) == (received is None)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("error", "sentence", "code"),
    [
        (SettingError("seed", -1, "more"), "job 7: seed=-1: more", 2),
        (ZeroDivisionError("a bug"), "job 7: ZeroDivisionError: a bug", 1),
        (SystemExit(128 + signal.SIGTERM), "job 7: stopped by SIGTERM", 143),
        (KeyboardInterrupt(), "job 7: interrupted", 130),
    ],
)
def test_what_ends_a_job_is_one_sentence_in_the_first_process(
    error: BaseException, sentence: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: Any) -> None:
        raise error

    with pytest.raises(JobError) as caught:
        as_job(fail)
    sent = pickle.loads(pickle.dumps(caught.value))
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending, one_sentence_errors():
        raise sent
    assert ending.value.code == code
    assert capsys.readouterr().err == f"error: {sentence}\n"


@pytest.mark.usefixtures("elsewhere")
def test_no_job_is_begun_after_a_signal() -> None:
    def stop(config: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    begun: list[Any] = []
    for function in (stop, begun.append):
        with pytest.raises(JobError, match="stopped by SIGTERM"):
            as_job(function)
    assert begun == []


@pytest.mark.usefixtures("elsewhere")
def test_jobs_side_by_side_take_turns_on_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    found = torch.device("cuda")
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: found)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 4)
    assert device_of("auto") == torch.device("cuda", 3)
    note_launch([])  # in the first process
    assert device_of("auto") == torch.device("cuda")


# --- what a sweeper is told


@pytest.mark.parametrize("larger", [True, False])
@pytest.mark.parametrize(
    ("setting", "for_small", "for_large"),
    [
        ("direction", "minimize", "maximize"),  # of Optuna
        ("ax_config.experiment.minimize", True, False),
        ("optim.maximize", False, True),  # of Nevergrad
    ],
)
def test_a_sweeper_that_looks_the_wrong_way_is_refused(
    setting: str, for_small: Any, for_large: Any, larger: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = SimpleNamespace(larger_is_better=larger, monitor="validation/score")
    trainer: Any = SimpleNamespace(loop=SimpleNamespace(evaluator=evaluator))
    right, wrong = (for_large, for_small) if larger else (for_small, for_large)

    def sweep(mode: RunMode, value: Any) -> None:
        sweeper = OmegaConf.create({"_target_": "own.Sweeper"})
        OmegaConf.update(sweeper, setting, value, force_add=True)
        config = SimpleNamespace(
            mode=mode, sweeper=sweeper, runtime=SimpleNamespace(choices={"hydra/sweeper": "own"})
        )
        monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: config))
        monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
        run_results.check_direction(trainer)

    sweep(RunMode.RUN, wrong)
    sweep(RunMode.MULTIRUN, right)
    refused = rf"hydra.sweeper.{setting}='?{wrong}'?: {str(right).lower()} is needed: .*/score"
    with pytest.raises(SettingError, match=refused):
        sweep(RunMode.MULTIRUN, wrong)
    evaluator.monitor = Unvalidated.monitor
    with pytest.raises(SettingError, match="sweeper='own': a training that is validated is needed"):
        sweep(RunMode.MULTIRUN, right)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy, that optuna uses
def test_optuna_is_told_the_best_validation_and_infinity_of_what_diverged(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    optuna = pytest.importorskip("optuna")
    told: list[float] = []
    tell = optuna.Study.tell

    def listen(self: Any, trial: Any, values: Any = None, **rest: Any) -> Any:
        told.extend(values)
        return tell(self, trial, values, **rest)

    monkeypatch.setattr(optuna.Study, "tell", listen)
    rates = "maml.inner_lr=choice(0.01,5000.0,0.001)"
    optuna_grid = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra.sweep.dir=found"]
    optuna_grid.append("hydra.sweeper.n_jobs=1")
    fixed = [word for word in TINY if not word.startswith("maml.inner_lr=")]
    outcome = run("train", "-m", *fixed, "trainer.compile=never", rates, *optuna_grid)
    assert outcome.code == 0, outcome.err
    scores = [line["best/loss_after"] for line in headlines(tmp_path / "found").values()]
    assert len(scores) == 2 and sorted(told) == sorted([*scores, math.inf]), outcome.out
    best = yaml.safe_load((tmp_path / "found" / "optimization_results.yaml").read_text())
    assert best["best_value"] == min(scores)


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (
            ["maml.inner_lr=interval(-1,0.1)"],
            "maml.inner_lr=-1.0: a finite number above 0 is needed",
        ),
        (["trainer.steps=choice(3,5)", "seed=choice(1,-2)"], "seed=-2: a whole number of at"),
    ],
)
def test_what_optuna_could_choose_is_checked_before_it_starts(
    words: list[str], refused: str, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    outcome = run("train", "-m", *TINY, *words, "hydra/sweeper=optuna", "hydra.sweep.dir=found")
    assert outcome.code == 2 and f"error: {refused}" in outcome.err
    assert not (tmp_path / "found").exists()
