"""The loop: cadence, what is best, when it stops."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from metalearn.checkpoint import load_checkpoint
from metalearn.tracking import NullTracker
from metalearn.trainers import FitResult
from metalearn.trainers.loop import validation
from tests.support.builders import (
    Recorder,
    Scripted,
    assert_same,
    last,
    signal_in_step,
    signal_in_validation,
    state_of,
)

# --- cadence ------------------------------------------------------------------------------------


def test_when_it_looks_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Recorder()
    saved: list[tuple[str, int]] = []
    trainer = Scripted(
        [1.0, 2.0, 1.0],
        steps=11,
        log_every=3,
        eval_every=4,
        checkpoint_every=5,
        tracker=tracker,
        folder=tmp_path,
    )
    save = trainer.loop.save

    def note(name: str) -> Path | None:
        saved.append((name, trainer.step))
        return save(name)

    monkeypatch.setattr(trainer.loop, "save", note)
    trainer.fit()
    assert trainer.seen == list(range(11))
    assert tracker.steps("train/loss") == [1, 3, 6, 9]
    assert tracker.steps("validation/score") == [0, 4, 8, 11]
    assert [s for name, s in saved if name == "best"] == [0, 4]
    assert sorted({s for name, s in saved if name == "last"}) == [0, 5, 10, 11]
    assert {name for name, _ in saved} == {"best", "last"}
    assert tracker.flushes >= 1


def test_what_a_logged_step_says() -> None:
    tracker = Recorder()
    trainer = Scripted(steps=2, log_every=1, tracker=tracker)
    trainer.objective.unit = "samples"
    trainer.fit()
    numbers = tracker.numbers[1][1]
    assert set(numbers) == {
        "train/loss",
        "train/gradient_norm",
        "train/learning_rate",
        "speed/samples_per_s",
        "speed/memory_gb",
    }
    assert tracker.series("train/loss") == [1.0, 0.5]
    assert numbers["speed/samples_per_s"] > 0
    assert 0.01 < numbers["speed/memory_gb"] < 1000


def _in_rows(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.flatten() for name, value in state.items()}


def test_distributions_are_those_of_the_moment() -> None:
    tracker = Recorder()
    trainer = Scripted(steps=4, eval_every=2, tracker=tracker, clip=None)
    start = {n: p.detach().clone() for n, p in trainer.module.named_parameters()}
    trainer.fit()
    parameters = {s: t for s, name, t in tracker.distributions if name == "weights"}
    assert list(parameters) == [0, 2, 4]
    assert_same(parameters[0], _in_rows(start))
    assert_same(parameters[4], _in_rows(trainer.module.state_dict()))
    drawn = {s: figure for s, name, figure in tracker.drawn if name == "weights/gradient_by_layer"}
    assert list(drawn) == [2, 4]
    for figure in drawn.values():
        layers = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
        assert layers == ["weight", "bias"]


def test_one_step_is_a_run(tmp_path: Path) -> None:
    tracker = Recorder()
    trainer = Scripted([1.0, 2.0], steps=1, tracker=tracker, folder=tmp_path)
    result = trainer.fit()
    assert (result.step, result.reason, result.best_step, result.best_value) == (
        1, "finished", 1, 2.0,
    )  # fmt: skip
    assert tracker.steps("train/loss") == [1]
    assert tracker.steps("validation/score") == [0, 1]
    assert load_checkpoint(last(tmp_path))["step"] == 1


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = Scripted(steps=2)
    assert isinstance(trainer.tracker, NullTracker)
    assert trainer.save("last") is None
    assert trainer.fit().reason == "finished"
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_has_nothing_left_to_do() -> None:
    trainer = Scripted(steps=3)
    trainer.fit()
    before = state_of(trainer)
    result = trainer.fit()
    assert trainer.seen == [0, 1, 2]
    assert (result.step, result.reason) == (3, "finished")
    assert_same(state_of(trainer), before)


def test_each_validation_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="metalearn"):
        Scripted([0.25, 0.5], steps=2, eval_every=1, progress=False).fit()
    assert [r.getMessage() for r in caplog.records] == [
        "step 0/2: validation/score 0.25 (best 0.25 at step 0)",
        "step 1/2: validation/score 0.5 (best 0.5 at step 1)",
        "step 2/2: validation/score 0.5 (best 0.5 at step 1)",
    ]


def test_the_loop_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    Scripted(steps=3).fit()
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_bar_shows_the_step(capfd: pytest.CaptureFixture[str]) -> None:
    Scripted(steps=3, progress=True).fit()
    captured = capfd.readouterr()
    assert captured.out == "" and "3/3" in captured.err and "loss" in captured.err


# --- the best -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "larger", "best"),
    [
        ([0.1, 0.5, 0.3, 0.4], True, 2),
        ([0.1, 0.5, 0.05, 0.4], False, 4),
        ([0.5, 0.5, 0.5, 0.5], True, 0),
        ([0.5, 0.5, 0.5, 0.5], False, 0),
        ([0.1, 0.2, 0.3, 0.4], True, 6),
        ([-3.0, -2.0, -4.0, -5.0], True, 2),
    ],
)
def test_the_best_validation_is_kept(
    tmp_path: Path, scores: list[float], larger: bool, best: int
) -> None:
    tracker = Recorder()
    trainer = Scripted(
        scores, larger=larger, steps=6, eval_every=2, tracker=tracker, folder=tmp_path
    )
    result = trainer.fit()
    chosen = (max if larger else min)(scores)
    assert (result.best_step, result.best_value) == (best, chosen)
    assert result.best_name == "validation/score"
    at = {s: t for s, name, t in tracker.distributions if name == "weights"}
    saved = load_checkpoint(tmp_path / "checkpoints" / "best.pt")
    assert saved["step"] == best
    assert_same(_in_rows(saved["module"]), at[best])
    trainer.load_best()
    assert_same(_in_rows(trainer.module.state_dict()), at[best])


def test_a_first_validation_that_is_not_a_number_is_not_the_best_for_ever() -> None:
    result = Scripted([math.nan, 0.5, 0.4], steps=2, eval_every=1).fit()
    assert (result.best_step, result.best_value) == (1, 0.5)


def test_a_later_validation_that_is_not_a_number_is_not_the_best() -> None:
    result = Scripted([0.3, math.nan, 0.4], steps=2, eval_every=1).fit()
    assert (result.best_step, result.best_value) == (2, 0.4)


def test_the_best_does_not_move_with_the_module() -> None:
    trainer = Scripted([0.5, 0.1], steps=3)
    before = {n: p.detach().clone() for n, p in trainer.module.named_parameters()}
    trainer.fit()
    assert not torch.equal(trainer.module.weight, before["weight"])
    trainer.load_best()
    assert_same(dict(trainer.module.state_dict()), before)


def test_the_best_survives_a_resumption(tmp_path: Path) -> None:
    first = Scripted([0.1, 0.9, 0.5], steps=3, eval_every=1, folder=tmp_path)
    signal_in_step(first, 1, signal.SIGTERM)
    first.fit()
    second = Scripted([0.1, 0.9, 0.5], steps=3, eval_every=1, folder=tmp_path)
    second.resume(last(tmp_path))
    result = second.fit()
    assert (result.best_step, result.best_value) == (1, 0.9)
    second.load_best()
    best = load_checkpoint(tmp_path / "checkpoints" / "best.pt")
    assert_same(second.module.state_dict(), best["module"])


# --- patience -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "patience", "stopped"),
    [
        ([0.5, 0.4], 1, 1),
        ([0.5, 0.4], 3, 3),
        ([0.5, 0.4, 0.6, 0.5], 2, 4),
        ([0.5, 0.5, 0.5], 2, 2),  # as good as the best is no improvement
    ],
)
def test_patience_ends_a_run(scores: list[float], patience: int, stopped: int) -> None:
    trainer = Scripted(scores, steps=20, eval_every=1, patience=patience)
    result = trainer.fit()
    assert (result.step, result.reason, result.signal) == (stopped, "patience", None)
    assert len(trainer.seen) == stopped


def test_improvement_renews_patience() -> None:
    scores = [0.1, 0.0, 0.2, 0.1, 0.3, 0.2, 0.4]
    assert Scripted(scores, steps=6, eval_every=1, patience=2).fit().reason == "finished"
    assert Scripted([0.5, 0.4], steps=6, eval_every=1).fit().reason == "finished"


def test_a_run_out_of_patience_stays_ended(tmp_path: Path) -> None:
    settings: Any = {"steps": 9, "eval_every": 1, "patience": 2, "folder": tmp_path}
    Scripted([0.5, 0.4], **settings).fit()
    again = Scripted([0.5, 0.4], **settings)
    again.resume(last(tmp_path))
    assert again.fit().reason == "patience"
    assert again.seen == []


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_resumption_does_not_use_up_patience(tmp_path: Path, stop: int) -> None:
    settings: Any = {"steps": 9, "eval_every": 1, "patience": 3}
    whole, first = (Scripted([0.5, 0.4], folder=f, **settings) for f in (None, tmp_path))
    whole.fit()
    if stop == 0:
        signal_in_validation(first, signal.SIGTERM)
    else:
        signal_in_step(first, stop - 1, signal.SIGTERM)
    assert (first.fit().reason, first.step) == ("interrupted", stop)
    second = Scripted([0.5, 0.4], folder=tmp_path, **settings)
    second.resume(last(tmp_path))
    assert second.fit().step == whole.step == 3
    assert_same(state_of(second), state_of(whole))


# --- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step_at_hand(tmp_path: Path, number: int) -> None:
    trainer = Scripted(steps=9, folder=tmp_path, checkpoint_every=100)
    signal_in_step(trainer, 3, number)
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    result = trainer.fit()
    assert (result.step, result.reason, result.signal) == (4, "interrupted", number)
    assert load_checkpoint(last(tmp_path))["step"] == 4
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_in_the_last_step_does_not_undo_the_end() -> None:
    trainer = Scripted(steps=2)
    signal_in_step(trainer, 1, signal.SIGTERM)
    result = trainer.fit()
    assert (result.step, result.reason, result.signal) == (2, "finished", signal.SIGTERM)


def test_two_interrupts_end_the_run_at_once(tmp_path: Path) -> None:
    trainer = Scripted(steps=9, folder=tmp_path, checkpoint_every=2)
    signal_in_step(trainer, 3, signal.SIGINT)
    signal_in_step(trainer, 3, signal.SIGINT)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert signal.getsignal(signal.SIGINT) is before
    assert load_checkpoint(last(tmp_path))["step"] == 2


def test_training_works_in_another_thread() -> None:
    results: list[FitResult] = []
    thread = threading.Thread(target=lambda: results.append(Scripted(steps=2).fit()))
    thread.start()
    thread.join()
    assert [r.reason for r in results] == ["finished"]


class Noted(torch.nn.Linear):
    """A layer with something of its own in its state."""

    def __init__(self, note: Any) -> None:
        super().__init__(3, 2)
        self.note = note

    def get_extra_state(self) -> Any:
        return self.note

    def set_extra_state(self, state: Any) -> None:
        self.note = state


@pytest.mark.parametrize(
    ("note", "blank"),
    [({"seen": 2}, {"seen": 0}), ("text", ""), (3, 0), (torch.ones(2), torch.zeros(2))],
    ids=["mapping", "text", "number", "tensor"],
)
def test_what_a_layer_keeps_beside_tensors_is_kept(note: Any, blank: Any, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        made = Noted(note), Noted(blank)
    trainer, resumed = (Scripted(module=m, steps=2, folder=tmp_path, progress=False) for m in made)
    trainer.fit()
    resumed.resume(last(tmp_path))
    assert_same(made[1].note, note)
    made[1].note = blank
    resumed.load_best()
    assert_same(made[1].note, note)


def test_patience_that_is_raised_forgets_the_end(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 6, "eval_every": 1, "progress": False}
    trainer = Scripted([0.5, 0.4], patience=1, folder=tmp_path, **settings)
    assert trainer.fit().reason == "patience"
    trainer.loop.population.patience = None
    trainer.resume(last(tmp_path))
    assert not trainer.endings and trainer.active.all()
    assert trainer.fit().reason == "finished"


def test_norms_of_all_layers_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read waits for the device."""
    made = Scripted(steps=1, tracker=Recorder())
    made.fit()
    reads = []
    for name in ("cpu", "item", "tolist", "numpy"):
        monkeypatch.setattr(Tensor, name, _counted(getattr(Tensor, name), reads))
    monkeypatch.setattr(validation, "layers_figure", lambda *given, **rest: Figure())
    validation._show_layers(made.loop)
    assert reads == ["cpu"]


def _counted(method: Any, reads: list[str]) -> Any:
    def counted(tensor: Tensor, *given: Any, **rest: Any) -> Any:
        reads.append(method.__name__)
        return method(tensor, *given, **rest)

    return counted
