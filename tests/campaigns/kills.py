"""Trainings that are killed at random moments and resumed: ``python -m tests.campaigns.kills``.

Every trainer, with settings as small as those of `tests.saved_runs`, is trained once undisturbed
and then again and again under blows: a signal at one of the moments at which the process touches a
file of its run (counted by an audit hook, half of them before the first checkpoint is in its place)
or at a moment of the clock. It is resumed until it ends by itself, with a few more blows on the
way, and has to end as the undisturbed one to the last bit: weights, optimiser, best state, results,
records, and no file left over.

A training is a fork of this process, which has imported all that it needs, unless
``--real`` asks for processes of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # before the forks, as all imports; optimisers of torch take it along
from hydra.core.global_hydra import GlobalHydra

import metalearn.cli.commands.train
import metalearn.tracking.events
from metalearn.checkpoint import load_checkpoint
from tests.saved_runs.double import draw_pictures
from tests.saved_runs.make import RUNS, with_pictures
from tests.support.builders import assert_same, without_times
from tests.support.unrendered import without_pixels

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "scripts" / "train.py")
GENTLE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass
class Blow:
    """A signal at the n-th touch of a file of the run, or after some seconds."""

    number: int
    touch: int | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        when = f"touch {self.touch}" if self.touch is not None else f"{self.seconds:.2f} s"
        return f"{signal.Signals(self.number).name} at {when}"


def watch(folder: Path, blow: Blow | None, counts: Path | None) -> None:
    """In the process that trains: strike at a touch, or note how many there are."""
    events = ("open", "os.rename", "os.mkdir", "os.remove", "os.chmod", "os.truncate")
    touches = 0
    noting = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal touches, noting
        if event not in events or noting or not isinstance(arguments[0], str | os.PathLike):
            return
        if not os.fspath(arguments[0]).startswith(str(folder)):
            return
        touches += 1
        if blow is not None and touches == blow.touch:
            os.kill(os.getpid(), blow.number)
        if counts is not None:
            noting = True
            first = (folder / "checkpoints" / "last.pt").exists()
            with counts.open("a") as file:
                file.write(f"{int(first)}\n")
            noting = False

    sys.addaudithook(hook)


def script(arguments: list[str]) -> int:
    """Run ``scripts/train.py`` here; its exit code."""
    GlobalHydra.instance().clear()
    sys.argv = [SCRIPT, *arguments]
    try:
        runpy.run_path(SCRIPT, run_name="__main__")
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    return 0


def train(
    arguments: list[str],
    folder: Path,
    log: Path,
    *,
    blow: Blow | None = None,
    counts: Path | None = None,
    real: bool = False,
) -> int:
    """A training in a process of its own: its exit code, or minus the signal that ended it."""
    if real:
        return _process(arguments, log, blow)
    child = os.fork()
    if not child:
        code = 1
        try:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(file, 1)
            os.dup2(file, 2)
            watch(folder, blow, counts)
            without_pixels(pytest.MonkeyPatch())
            code = script(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    if blow is not None and blow.seconds is not None:
        _strike_later(child, blow)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _strike_later(child: int, blow: Blow) -> None:
    assert blow.seconds is not None
    end = time.monotonic() + blow.seconds
    while time.monotonic() < end:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.005)
    os.kill(child, blow.number)


def _process(arguments: list[str], log: Path, blow: Blow | None) -> int:
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, SCRIPT, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=file,
        )
        if blow is not None:
            assert blow.seconds is not None
            try:
                process.wait(blow.seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(blow.number)
        return process.wait()


def ends(folder: Path) -> dict[str, Any]:
    """All that a run has come to, without what the clock says."""
    found: dict[str, Any] = {}
    for name in ("last", "best"):
        found[name] = without_times(load_checkpoint(folder / "checkpoints" / f"{name}.pt"))
    found["results"] = without_times(json.loads((folder / "results.json").read_text()))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clocked = ("time", "speed/", "diagnostics/")
    found["metrics"] = [
        {k: v for k, v in line.items() if not k.startswith(clocked)} for line in lines
    ]
    found["config"] = (folder / "config.yaml").read_text()
    found["hidden"] = sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))
    return found


class Campaign:
    """Blows on one kind of training.

    Args:
        name: of `tests.saved_runs.make.RUNS`.
        scratch: where runs are made.
        seed: of the blows.
        real: whether trainings are processes that start from nothing.
    """

    def __init__(self, name: str, scratch: Path, *, seed: int, real: bool) -> None:
        self.name, self.scratch, self.real = name, scratch, real
        self.random = random.Random(f"{seed} {name} {real}")
        self.log = scratch / f"{name}.log"
        pictures = scratch / "pictures"
        if not pictures.exists():
            draw_pictures(pictures)
        self.arguments = [*with_pictures(RUNS[name], pictures), "deterministic=true"]
        self.early = self.late = 0
        whole, counts = scratch / f"{name}-whole", scratch / f"{name}-counts"
        started = time.monotonic()
        code = train(
            [*self.arguments, f"hydra.run.dir={whole}"],
            whole,
            self.log,
            counts=None if real else counts,
            real=real,
        )
        assert code == 0, self.log.read_text()
        self.seconds = time.monotonic() - started
        self.wanted = ends(whole)
        if not real:
            touched = counts.read_text().split()
            self.first, self.touches = touched.count("0"), len(touched)

    def blow(self, *, first: bool) -> Blow:
        """A blow at random; a first one before the first checkpoint every other time."""
        number = signal.SIGKILL if self.random.random() < 0.7 else self.random.choice(GENTLE)
        if self.real:
            return Blow(number, seconds=self.random.uniform(0.0, 1.1 * self.seconds))
        if self.random.random() < 0.2:
            return Blow(number, seconds=self.random.uniform(0.0, self.seconds))
        early = first and self.random.random() < 0.6
        last = self.first if early else self.touches
        return Blow(number, touch=self.random.randint(1, last))

    def run(self, index: int) -> tuple[int, str]:
        """One training under blows: how many fell, and what was wrong in the end."""
        folder = self.scratch / f"{self.name}-{index}"
        blows: list[str] = []
        more = self.random.randint(1, 3)
        while True:
            blow = self.blow(first=not blows) if len(blows) < more else None
            begun = (folder / "config.yaml").is_file()
            where = [f"resume={folder}"] if begun else [*self.arguments, f"hydra.run.dir={folder}"]
            code = train(where, folder, self.log, blow=blow, real=self.real)
            if blow is None or code == 0:
                break
            blows.append(str(blow))
            if (folder / "checkpoints" / "last.pt").exists():
                self.late += 1
            else:
                self.early += 1
            if code not in (-blow.number, 128 + blow.number):
                return len(blows), f"{blows}: exit code {code}\n{self.log.read_text()[-2000:]}"
        if code != 0:
            return len(blows), f"{blows}: exit code {code}\n{self.log.read_text()[-2000:]}"
        try:
            assert_same(ends(folder), self.wanted, self.name)
        except AssertionError as error:
            return len(blows), f"{blows}: {error}"
        return len(blows), ""


def main(arguments: list[str] | None = None) -> int:
    """Strike until each kind of training has had its blows; 1 if a run did not go on rightly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blows", type=int, default=12, help="on each kind of training, at least")
    parser.add_argument("--kinds", nargs="*", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", action="store_true", help="processes that start from nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    wrong, tried, early = 0, 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        for kind in options.kinds:
            campaign = Campaign(kind, Path(scratch), seed=options.seed, real=options.real)
            fallen = index = 0
            while fallen < options.blows and index < 4 * options.blows:
                blows, problem = campaign.run(index)
                fallen, index = fallen + blows, index + 1
                if problem:
                    wrong += 1
                    print(f"{kind}: {problem}", flush=True)
            print(
                f"{kind}: {fallen} blows on {index} runs, {campaign.early} of them before the "
                f"first checkpoint",
                flush=True,
            )
            tried, early = tried + fallen, early + campaign.early
    print(f"{tried} blows, {early} early: {wrong} runs went wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    assert metalearn.cli
    sys.exit(main())
