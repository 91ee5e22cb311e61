"""A run can always go on: broken off validations, steps counted once, disks that fail."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from torch import Tensor

from metalearn.checkpoint import load_checkpoint
from metalearn.errors import DataError
from metalearn.models import MLP, Ensemble
from metalearn.tasks import SinusoidTasks
from metalearn.tracking import RunTracker
from metalearn.trainers import MAML, MetaTrainer, Trainer
from metalearn.trainers.loop.stop_signal import Stopped
from metalearn.trainers.meta.evaluator import MetaEvaluator
from tests.support.builders import (
    Recorder,
    Scripted,
    assert_same,
    before_gradient,
    before_validation,
    ensemble_trainer,
    extra_state,
    last,
    sinusoid_trainer,
    state_of,
    without_ensemble_figures,
)
from tests.support.diagnostic_cases import per_sample


def _meta(**settings: Any) -> Trainer:
    return sinusoid_trainer(**{"validation_tasks": 12, **settings})


TRAINERS: dict[str, Callable[..., Trainer]] = {
    "meta": _meta,
    "ensemble": ensemble_trainer,
    "per_sample": per_sample,
}
trainers = pytest.mark.parametrize("make", TRAINERS.values(), ids=TRAINERS)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MetaEvaluator, "_draw", lambda self, *given: None)
    without_ensemble_figures(monkeypatch)


def _send_while(trainer: Any, name: str, when: Callable[[], bool], number: int) -> None:
    """Send this process a signal at a call of a method for which ``when`` holds."""
    original = getattr(trainer, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        if when():
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(trainer, name, method)


# --- broken off ---------------------------------------------------------------------------------


@trainers
@pytest.mark.parametrize("step", [0, 4, 6])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_validation_that_is_broken_off_leaves_no_trace(
    make: Callable[..., Trainer], step: int, number: int, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"log_every": 1, "eval_every": 4, "checkpoint_every": 3}
    settings["steps"] = 6
    records = [Recorder() for _ in range(3)]
    whole, stopped, resumed = (
        make(tracker=tracker, folder=tmp_path / name, **settings)
        for tracker, name in zip(records, ("whole", "parts", "parts"))
    )
    whole.fit()

    def stop() -> None:
        if stopped.step == step:
            os.kill(os.getpid(), number)

    before_validation(stopped, stop)
    result = stopped.fit()
    assert (result.reason, result.signal, result.step) == ("interrupted", number, step)
    assert not any(name.startswith("validation") for s, row in records[1].numbers
                   if s == step for name in row)  # fmt: skip
    assert load_checkpoint(last(tmp_path / "parts"))["step"] == step
    resumed.resume(last(tmp_path / "parts"))
    assert resumed.validation_due and not resumed.finished
    assert resumed.fit().reason == "finished"
    assert_same(state_of(resumed), state_of(whole))
    together = records[1].series(whole.monitor) + records[2].series(whole.monitor)
    assert together == records[0].series(whole.monitor)


def test_a_test_is_broken_off_where_signals_are_heard() -> None:
    for make in (_meta, ensemble_trainer, per_sample):
        trainer: Any = make()
        trainer.fit()
        with pytest.raises(Stopped), trainer.stoppable():
            os.kill(os.getpid(), signal.SIGTERM)
            trainer.test()
        trainer.test()


def test_diagnostics_that_are_broken_off_leave_no_trace(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "steps": 6,
        "log_every": 1,
        "diagnostics": ["gradient_norms", "noise_scale"],
        "diagnostics_every": 3,
    }
    whole, stopped, resumed = (
        per_sample(folder=tmp_path / name, **settings) for name in ("whole", "parts", "parts")
    )
    whole.fit()
    buffer = torch.zeros(1)
    stopped.module.register_buffer("seen", buffer, persistent=False)
    before_gradient(stopped, lambda step: buffer.add_(1))
    _send_while(stopped.source, "gradient_units", lambda: stopped.step == 5, signal.SIGTERM)
    assert stopped.fit().step == 5
    assert buffer == 5, "what the step wrote before its diagnostics is taken back"
    resumed.resume(last(tmp_path / "parts"))
    resumed.fit()
    assert_same(state_of(resumed), state_of(whole))
    assert_same(extra_state(resumed), extra_state(whole))


def test_a_diagnostic_of_models_that_is_broken_off_takes_back_those_before_it(
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {
        "steps": 6,
        "log_every": 1,
        "diagnostics": ["noise_scale", "fisher_trace"],
        "diagnostics_every": 3,
    }
    whole, stopped, resumed = (
        per_sample(folder=tmp_path / name, **settings) for name in ("whole", "parts", "parts")
    )
    whole.fit()
    _send_while(stopped.source, "predictive_models", lambda: stopped.step == 5, signal.SIGTERM)
    assert stopped.fit().step == 5
    resumed.resume(last(tmp_path / "parts"))
    resumed.fit()
    assert_same(state_of(resumed), state_of(whole))
    assert_same(extra_state(resumed), extra_state(whole))


def test_a_plan_is_given_up_at_once() -> None:
    trainer = ensemble_trainer(engine="auto")
    before = trainer.module.state_dict()
    _send_while(trainer.loop.objective, "_gradients", lambda: True, signal.SIGTERM)
    assert trainer.fit().step == 0
    assert_same(dict(trainer.module.state_dict()), dict(before))


@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("method", ["prepare", "validate", "test"])
@pytest.mark.parametrize("engine", ["auto", "vmap", "loop"])
def test_a_batch_of_tasks_is_broken_off_between_its_predictions(
    engine: Any, method: str, members: int | None
) -> None:
    """After the signal, in the third prediction, the network is not called again."""
    network = MLP((1,), 1, hidden=(8,))
    model = network if members is None else Ensemble.from_modules([network] * members)
    maml = MAML(inner_lr=0.01, engine=engine, eval_steps=3)
    tasks = SinusoidTasks(shot=4, query=4)
    trainer: Any = MetaTrainer(model, tasks, members=members, maml=maml, meta_batch=4)
    if method != "prepare":
        trainer.prepare()
    predict, called = trainer.learner.apply, [0]

    def counted(*given: Any) -> Any:
        called[0] += 1
        if called[0] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(*given)

    trainer.learner.apply = counted
    given = {"inductive": True} if method == "test" else {}
    with pytest.raises(Stopped), trainer.stoppable():
        getattr(trainer, method)(**given)
    assert called[0] <= 4, "the inner step at hand, and no further prediction"
    assert trainer.learner.plan is None or method != "prepare"


# --- a step is counted once ---------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_two_interrupts_do_not_part_the_update_from_its_count(tmp_path: Path, when: str) -> None:
    trainer, whole = Scripted(steps=6, folder=tmp_path), Scripted(steps=6)
    update = trainer.loop.update

    def interrupted(active: Tensor, factor: float) -> None:
        if when == "after":
            update(active, factor)
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        if when == "before":
            update(active, factor)

    interrupted.optimizer = update.optimizer  # type: ignore[attr-defined]
    interrupted.base_rates = update.base_rates  # type: ignore[attr-defined]
    trainer.loop.update = interrupted  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.step == 4
    trainer.loop.update = update
    trainer.fit()
    whole.fit()
    assert_same(state_of(trainer), state_of(whole))
    assert trainer.seen == list(range(6))


def test_two_interrupts_do_not_part_a_verdict_from_its_state(tmp_path: Path) -> None:
    trainer, whole = (Scripted([0.1, 0.5, 0.3], steps=6, eval_every=3) for _ in range(2))
    record = trainer.loop.population.record_validation

    def interrupted(scores: Tensor, step: int) -> bool:
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return record(scores, step)

    trainer.loop.population.record_validation = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.fit()
    whole.fit()
    assert_same(state_of(trainer), state_of(whole))


# --- finished -----------------------------------------------------------------------------------


@trainers
def test_a_finished_run_that_is_resumed_writes_nothing(
    make: Callable[..., Trainer], tmp_path: Path
) -> None:
    make(folder=tmp_path).fit()
    before = {
        p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "checkpoints").iterdir()
    }
    again = make(folder=tmp_path)
    again.resume(last(tmp_path))
    assert again.finished
    assert again.fit().reason == "finished"
    assert before == {
        p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "checkpoints").iterdir()
    }


def test_fewer_steps_than_taken_are_a_finished_run(tmp_path: Path) -> None:
    Scripted(steps=4, folder=tmp_path).fit()
    again = Scripted(steps=2, folder=tmp_path)
    again.resume(last(tmp_path))
    assert (again.fit().step, again.fit().reason) == (4, "finished")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("missing", "the best checkpoint is missing.*a copy of last.pt in its place"),
        ("another module", r"does not fit the run \(module.weight is float32 of shape"),
    ],
)
def test_a_bad_best_is_said_before_training(tmp_path: Path, damage: str, said: str) -> None:
    Scripted(steps=2, folder=tmp_path).fit()
    best = tmp_path / "checkpoints" / "best.pt"
    if damage == "missing":
        best.unlink()
    else:
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        Scripted(steps=2, module=torch.nn.Linear(5, 2), folder=tmp_path / "other").fit()
        shutil.copy(tmp_path / "other" / "checkpoints" / "best.pt", best)
    again = Scripted(steps=4, folder=tmp_path)
    with pytest.raises(DataError, match=rf"best\.pt: .*{said}"):
        again.resume(last(tmp_path))
        again.fit()
    assert again.seen == []
    shutil.copy(last(tmp_path), best)
    mended = Scripted(steps=4, folder=tmp_path)
    mended.resume(last(tmp_path))
    assert mended.fit().reason == "finished"


# --- disks --------------------------------------------------------------------------------------


def test_a_folder_that_was_taken_away_is_not_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trainer = Scripted(steps=6, folder=folder, checkpoint_every=2)
    before_gradient(trainer, lambda step: shutil.rmtree(folder) if step == 3 else None)
    with pytest.raises(FileNotFoundError) as caught:
        trainer.fit()
    assert caught.value.filename == str(last(folder))
    assert not folder.exists()


def test_a_disk_that_is_full_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch hides the error of a file behind one of its own."""
    full = {"now": False}

    class Disk:
        def __init__(self, file: IO[bytes]) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            if full["now"]:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

        def flush(self) -> None:
            self.file.flush()

    save = torch.save
    monkeypatch.setattr(torch, "save", lambda state, file: save(state, Disk(file)))
    trainer, whole = (Scripted(steps=6, checkpoint_every=2, folder=tmp_path / n) for n in "ab")
    whole.fit()
    before_gradient(trainer, lambda step: full.update(now=step == 3))
    with pytest.raises(OSError, match="No space left") as caught:
        trainer.fit()
    assert caught.value.filename == str(last(tmp_path / "a"))
    assert load_checkpoint(last(tmp_path / "a"))["step"] == 2
    full["now"] = False
    again = Scripted(steps=6, checkpoint_every=2, folder=tmp_path / "a")
    again.resume(last(tmp_path / "a"))
    again.fit()
    assert_same(state_of(again), state_of(whole))


def test_a_training_outlives_tensorboard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    trainer = Scripted(steps=4, log_every=1, folder=tmp_path, tracker=RunTracker(tmp_path))
    assert trainer.fit().reason == "finished"
    trainer.tracker.close()
    assert (
        len([r for r in caplog.records if "no further records for TensorBoard" in r.message]) == 1
    )
    assert (tmp_path / "metrics.jsonl").stat().st_size
