"""What every trainer promises: a run is a function of its settings, whatever interrupts it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metalearn.checkpoint import load_checkpoint
from metalearn.errors import DataError, NonFiniteError, SettingError
from metalearn.tracking import RunTracker
from metalearn.trainers import FitResult, HyperTrainer, Trainer
from metalearn.trainers.meta.evaluator import MetaEvaluator
from metalearn.trainers.supervised import model_evaluation
from tests.contracts.trainers import TRAINERS, Make
from tests.support.builders import (
    Recorder,
    after_gradient,
    assert_same,
    before_validation,
    ensemble_trainer,
    episode_trainer,
    last,
    signal_in_step,
    signal_in_validation,
    sinusoid_trainer,
    state_of,
    without_ensemble_figures,
    without_times,
)

trainers = pytest.mark.parametrize("make", TRAINERS.values(), ids=TRAINERS)
MEMBERS = {
    "ensemble",
    "sweep",
    "regression",
    *(name for name in TRAINERS if name.endswith("_members")),
}

no_figures = pytest.mark.usefixtures("no_figures")

CADENCE: dict[str, Any] = {"log_every": 1, "eval_every": 2, "checkpoint_every": 3}
CLOCKED = ("time", "speed/", "diagnostics/")


@pytest.fixture(name="no_figures")
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of these tiny runs, and `meta.test_records` looks at it."""
    _without_figures(monkeypatch)


def _without_figures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MetaEvaluator, "_draw", lambda self, *given: None)
    patch.setattr(model_evaluation, "_draw", lambda *given: None)
    patch.setattr(HyperTrainer, "_figure", lambda *given: None)
    patch.setattr(RunTracker, "figure", lambda self, *given: None)  # those of diagnostics
    without_ensemble_figures(patch)


@dataclass(frozen=True)
class Whole:
    """A run that nothing interrupted, its records and checkpoints in a folder."""

    trainer: Trainer
    result: FitResult
    folder: Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Make], Whole]:
    """The whole run of a trainer, made once: what others of the same settings are held against."""
    known: dict[Make, Whole] = {}

    def run(make: Make) -> Whole:
        if make not in known:
            folder = tmp_path_factory.mktemp("whole")
            with pytest.MonkeyPatch.context() as patch:
                _without_figures(patch)
                known[make] = Whole(*_tracked(make, folder), folder)
        return known[make]

    return run


def _lines(folder: Path) -> list[dict[str, Any]]:
    """Records without what the clock decides."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(CLOCKED)} for row in rows]


def _tracked(make: Make, folder: Path, **settings: Any) -> tuple[Trainer, FitResult]:
    """A run with a tracker, from the last checkpoint where there is one."""
    trainer = make(folder=folder, **CADENCE, **settings)
    resuming = last(folder).is_file()
    if resuming:
        trainer.resume(last(folder))
    trainer.tracker = RunTracker(folder, resume_step=trainer.step if resuming else None)
    try:
        return trainer, trainer.fit()
    finally:
        trainer.tracker.close()


# --- one run -----------------------------------------------------------------------------------


@no_figures
@trainers
def test_the_same_settings_give_the_same_run(
    make: Make, whole: Callable[[Make], Whole], tmp_path: Path
) -> None:
    one = whole(make)
    other, result = _tracked(make, tmp_path)
    assert one.result.best_value == result.best_value
    assert_same(state_of(one.trainer), state_of(other))
    assert_same(_lines(one.folder), _lines(tmp_path))


@no_figures
@trainers
def test_cadence_does_not_change_what_is_learnt(make: Make, whole: Callable[[Make], Whole]) -> None:
    often, seldom = whole(make).trainer, make(log_every=100, eval_every=100, checkpoint_every=100)
    seldom.fit()
    assert_same(often.module.state_dict(), seldom.module.state_dict())
    assert_same(often.optimizer.state_dict(), seldom.optimizer.state_dict())


@trainers
def test_global_random_state_is_neither_read_nor_written(
    make: Make, whole: Callable[[Make], Whole]
) -> None:
    unseeded = whole(make).trainer  # whatever the state was then
    kept = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        torch.manual_seed(918273)
        random.seed(918273)
        np.random.seed(918273)  # noqa: NPY002
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        seeded = make(**CADENCE)
        seeded.fit()
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    finally:
        torch.set_rng_state(kept[0])
        random.setstate(kept[1])
        np.random.set_state(kept[2])  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert_same(state_of(seeded), state_of(unseeded))


@trainers
def test_a_result_says_how_it_ended(make: Make, whole: Callable[[Make], Whole]) -> None:
    run = whole(make)
    trainer, result = run.trainer, run.result
    assert (result.step, result.reason, result.signal) == (6, "finished", None)
    assert result.best_name == trainer.monitor
    values = [row[trainer.monitor] for row in _lines(run.folder) if trainer.monitor in row]
    best = (max if trainer.larger_is_better else min)(values)
    if len(trainer.active) > 1:  # every member has a best of its own
        assert result.best_value == float(trainer.best_values.median())
        assert result.best_step == int(trainer.best_steps.max())
    else:
        assert result.best_value == best
        assert result.best_step == 2 * values.index(best)
    assert result.seconds == trainer.seconds > 0
    state = load_checkpoint(last(run.folder))
    assert (state["step"], state["best_step"]) == (6, result.best_step)
    assert_same(state["module"], trainer.module.state_dict())


@no_figures
@trainers
def test_one_step_is_enough(make: Callable[..., Trainer]) -> None:
    tracker = Recorder()
    trainer = make(steps=1, tracker=tracker)
    assert trainer.fit().step == 1
    assert tracker.steps(trainer.monitor) == [0, 1]
    assert tracker.steps("train/gradient_norm") == [1]


@trainers
def test_settings_are_checked(make: Callable[..., Trainer]) -> None:
    for name, value in (("steps", 0), ("schedule", "exponential"), ("clip", 0), ("patience", 0)):
        with pytest.raises(SettingError, match=f"^{name}="):
            make(**{name: value})


# --- stopped and resumed -----------------------------------------------------------------------


@no_figures
@trainers
@pytest.mark.parametrize(
    ("number", "stops"),
    [(signal.SIGINT, (3,)), (signal.SIGTERM, (1, 2, 4))],
    ids=["interrupted once", "terminated thrice"],
)
def test_stopped_and_resumed_is_never_stopped(
    make: Make,
    number: int,
    stops: tuple[int, ...],
    whole: Callable[[Make], Whole],
    tmp_path: Path,
) -> None:
    uninterrupted, folder = whole(make), tmp_path / "stopped"
    for i, stop in enumerate(stops):
        trainer = make(folder=folder, tracker=Recorder(), **CADENCE)
        if i:
            trainer.resume(last(folder))
        signal_in_step(trainer, stop, number)
        result = trainer.fit()
        assert (result.step, result.reason, result.signal) == (stop + 1, "interrupted", number)
    resumed = make(folder=folder, tracker=Recorder(), **CADENCE)
    resumed.resume(last(folder))
    assert resumed.fit().reason == "finished"
    assert_same(state_of(resumed), state_of(uninterrupted.trainer))
    for name in ("last.pt", "best.pt"):
        one, other = (
            load_checkpoint(f / "checkpoints" / name) for f in (folder, uninterrupted.folder)
        )
        scores = []
        for state in (one, other):
            for account in ("privacy", "validation_privacy"):  # each run has an identity of its own
                state["extra"].get(account, {}).pop("run", None)
            noisy = state["extra"].get("validation_privacy", {}).pop("steps", [])
            scores.append(sum(count for _, count in noisy))
        assert scores[0] >= scores[1]  # one that was broken off is paid for again
        assert_same(without_times(one), without_times(other))


@no_figures
@trainers
@pytest.mark.parametrize("when", ["first validation", "later validation", "step"])
def test_records_of_a_resumed_run_are_those_of_a_whole_one(
    make: Make, when: str, whole: Callable[[Make], Whole], tmp_path: Path
) -> None:
    def interrupted(**settings: Any) -> Trainer:
        trainer = make(**settings)
        if when == "step":
            signal_in_step(trainer, 2, signal.SIGTERM)
        elif when == "first validation":
            signal_in_validation(trainer, signal.SIGTERM)
        else:
            seen = []

            def second() -> None:
                seen.append(trainer.step)
                if len(seen) == 2:
                    os.kill(os.getpid(), signal.SIGTERM)

            before_validation(trainer, second)
        return trainer

    _, stopped = _tracked(interrupted, tmp_path)
    assert stopped.reason == "interrupted"
    assert stopped.step == {"first validation": 0, "later validation": 2, "step": 3}[when]
    assert _tracked(make, tmp_path)[1].reason == "finished"
    assert_same(_lines(tmp_path), _lines(whole(make).folder))


KILLED = """
import os, signal
from pathlib import Path
from metalearn.tracking import RunTracker
from metalearn.trainers.meta.evaluator import MetaEvaluator
from tests.support.builders import episode_trainer, signal_in_step
MetaEvaluator._draw = lambda self, *given: None
folder = Path({folder!r})
trainer = episode_trainer(folder=folder, **{cadence!r})
trainer.tracker = RunTracker(folder)
signal_in_step(trainer, 4, signal.SIGKILL)
trainer.fit()
"""


@no_figures
def test_killed_and_resumed_is_never_stopped(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    script = KILLED.format(folder=str(folder), cadence=CADENCE)
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert load_checkpoint(last(folder))["step"] == 3
    assert _lines(folder)[-1]["step"] == 4
    one, other = (episode_trainer(folder=f, **CADENCE) for f in (folder, whole))
    one.resume(last(folder))
    assert one.step == 3
    one.tracker, other.tracker = RunTracker(folder, resume_step=3), RunTracker(whole)
    one.fit()
    other.fit()
    for trainer in (one, other):
        trainer.tracker.close()
    assert_same(state_of(one), state_of(other))
    assert_same(_lines(folder), _lines(whole))


@trainers
def test_a_checkpoint_of_another_trainer_is_refused(
    make: Callable[..., Trainer], tmp_path: Path
) -> None:
    other = "waves" if make is TRAINERS["episodes"] else "episodes"
    TRAINERS[other](steps=1, folder=tmp_path).fit()
    with pytest.raises(
        DataError, match=r"last\.pt: this checkpoint (does not fit the run|is of the optimiser)"
    ):
        make().resume(last(tmp_path))


@no_figures
@pytest.mark.parametrize("make", [sinusoid_trainer, episode_trainer, ensemble_trainer])
def test_patience_is_kept_over_a_stop(make: Callable[..., Trainer], tmp_path: Path) -> None:
    settings = {"steps": 30, "eval_every": 1, "patience": 1, "schedule": "constant"}
    still: Any = lambda ps: torch.optim.SGD(ps, lr=0.0)  # noqa: E731
    whole = make(**settings, optimizer=still)
    result = whole.fit()
    assert (result.step, result.reason) == (1, "patience")
    stopped, resumed = (make(**settings, optimizer=still, folder=tmp_path) for _ in range(2))
    signal_in_validation(stopped, signal.SIGTERM)
    assert stopped.fit().step == 0
    resumed.resume(last(tmp_path))
    assert resumed.fit().step == 1
    assert_same(state_of(resumed), state_of(whole))


# --- what is not finite ------------------------------------------------------------------------


@no_figures
@pytest.mark.parametrize("name", [name for name in TRAINERS if name not in MEMBERS])
def test_a_gradient_that_is_not_finite_is_never_applied(name: str, tmp_path: Path) -> None:
    """Of members, only the one concerned stops: see `tests.trainers.members.test_population`."""
    make = TRAINERS[name]
    trainer, sound = make(folder=tmp_path), make(folder=tmp_path / "sound")
    signal_in_step(sound, 1, signal.SIGTERM)
    sound.fit()

    def spoil(step: int, found: Any) -> None:
        if step == 2:
            next(iter(found.grads.values())).view(-1)[0] = torch.nan

    after_gradient(trainer, spoil)
    with pytest.raises(
        NonFiniteError, match=r"^step 2: .*gradient norm nan.*non_finite_step_2\.pt"
    ):
        trainer.fit()
    assert_same(trainer.module.state_dict(), sound.module.state_dict())
    resumed, whole = make(), make()
    resumed.resume(tmp_path / "checkpoints" / "non_finite_step_2.pt")
    resumed.fit()
    whole.fit()
    assert_same(resumed.module.state_dict(), whole.module.state_dict())
