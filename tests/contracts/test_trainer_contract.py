"""What every trainer promises: a run is a function of its settings, whatever interrupts it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
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
from tests.contracts.trainers import TRAINERS
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
    monkeypatch.setattr(MetaEvaluator, "_draw", lambda self, *given: None)
    monkeypatch.setattr(model_evaluation, "_draw", lambda *given: None)
    monkeypatch.setattr(HyperTrainer, "_figure", lambda *given: None)
    without_ensemble_figures(monkeypatch)


def _lines(folder: Path) -> list[dict[str, Any]]:
    """Records without what the clock decides."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(CLOCKED)} for row in rows]


def _tracked(make: Callable[..., Trainer], folder: Path, **settings: Any) -> FitResult:
    """A run with a tracker, from the last checkpoint where there is one."""
    trainer = make(folder=folder, **CADENCE, **settings)
    resuming = last(folder).is_file()
    if resuming:
        trainer.resume(last(folder))
    trainer.tracker = RunTracker(folder, resume_step=trainer.step if resuming else None)
    try:
        return trainer.fit()
    finally:
        trainer.tracker.close()


# --- one run -----------------------------------------------------------------------------------


@no_figures
@trainers
def test_the_same_settings_give_the_same_run(make: Callable[..., Trainer]) -> None:
    records = [Recorder(), Recorder()]
    one, other = (make(tracker=tracker, **CADENCE) for tracker in records)
    results = [one.fit(), other.fit()]
    assert results[0].best_value == results[1].best_value
    assert_same(state_of(one), state_of(other))
    plain = [
        [(s, {k: v for k, v in row.items() if not k.startswith(CLOCKED)}) for s, row in r.numbers]
        for r in records
    ]
    assert_same(plain[0], plain[1])


@no_figures
@trainers
def test_cadence_does_not_change_what_is_learnt(make: Callable[..., Trainer]) -> None:
    often, seldom = make(**CADENCE), make(log_every=100, eval_every=100, checkpoint_every=100)
    often.fit()
    seldom.fit()
    assert_same(often.module.state_dict(), seldom.module.state_dict())
    assert_same(often.optimizer.state_dict(), seldom.optimizer.state_dict())


@trainers
def test_global_random_state_is_neither_read_nor_written(make: Callable[..., Trainer]) -> None:
    runs = []
    kept = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        for seed in (1, 2):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
            trainer = make()
            trainer.fit()
            after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
            assert torch.equal(before[0], after[0])
            assert before[1:] == after[1:]
            runs.append(trainer)
    finally:
        torch.set_rng_state(kept[0])
        random.setstate(kept[1])
        np.random.set_state(kept[2])  # noqa: NPY002
    assert_same(state_of(runs[0]), state_of(runs[1]))


@no_figures
@trainers
def test_a_result_says_how_it_ended(make: Callable[..., Trainer], tmp_path: Path) -> None:
    tracker = Recorder()
    trainer = make(folder=tmp_path, tracker=tracker, **CADENCE)
    result = trainer.fit()
    assert (result.step, result.reason, result.signal) == (6, "finished", None)
    assert result.best_name == trainer.monitor
    values = tracker.series(trainer.monitor)
    best = (max if trainer.larger_is_better else min)(values)
    if len(trainer.active) > 1:  # every member has a best of its own
        assert result.best_value == float(trainer.best_values.median())
        assert result.best_step == int(trainer.best_steps.max())
    else:
        assert result.best_value == best
        assert result.best_step == 2 * values.index(best)
    assert result.seconds == trainer.seconds > 0
    state = load_checkpoint(last(tmp_path))
    assert (state["step"], state["best_step"]) == (6, result.best_step)
    assert_same(state["module"], trainer.module.state_dict())


@no_figures
@trainers
def test_one_step_is_enough(make: Callable[..., Trainer]) -> None:
    tracker = Recorder()
    trainer = make(steps=1, tracker=tracker)
    assert trainer.fit().step == 1
    assert tracker.steps(trainer.monitor) == [0, 1]
    assert tracker.steps("train/loss") == [1]


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
    make: Callable[..., Trainer], number: int, stops: tuple[int, ...], tmp_path: Path
) -> None:
    whole = make(folder=tmp_path / "whole", **CADENCE)
    whole.fit()
    folder = tmp_path / "stopped"
    for i, stop in enumerate(stops):
        trainer = make(folder=folder, **CADENCE)
        if i:
            trainer.resume(last(folder))
        signal_in_step(trainer, stop, number)
        result = trainer.fit()
        assert (result.step, result.reason, result.signal) == (stop + 1, "interrupted", number)
    resumed = make(folder=folder, **CADENCE)
    resumed.resume(last(folder))
    assert resumed.fit().reason == "finished"
    assert_same(state_of(resumed), state_of(whole))
    for name in ("last.pt", "best.pt"):
        one, other = (
            load_checkpoint(f / "checkpoints" / name) for f in (folder, tmp_path / "whole")
        )
        assert_same(without_times(one), without_times(other))


@no_figures
@trainers
@pytest.mark.parametrize("when", ["first validation", "later validation", "step"])
def test_records_of_a_resumed_run_are_those_of_a_whole_one(
    make: Callable[..., Trainer], when: str, tmp_path: Path
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

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _tracked(make, whole)
    stopped = _tracked(interrupted, parts)
    assert stopped.reason == "interrupted"
    assert stopped.step == {"first validation": 0, "later validation": 2, "step": 3}[when]
    assert _tracked(make, parts).reason == "finished"
    assert_same(_lines(parts), _lines(whole))


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
    other = episode_trainer if make is not episode_trainer else sinusoid_trainer
    other(steps=1, folder=tmp_path).fit()
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
