"""What a run leaves behind, and going on from there."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.checkpoint import load_checkpoint, save_checkpoint
from metalearn.errors import DataError, NonFiniteError
from tests.support.builders import (
    Recorder,
    Scripted,
    assert_same,
    drawn_gradient,
    last,
    signal_in_step,
    state_of,
)


def plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


# --- what is not finite -------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["loss", "gradient", "infinite loss", "infinite gradient"])
def test_what_is_not_finite_stops_before_the_step(tmp_path: Path, what: str) -> None:
    bad = math.inf if "infinite" in what else math.nan
    tracker = Recorder()

    def gradient(step: int, value: Tensor) -> Tensor:
        good = drawn_gradient(step, value)
        return good * bad if step == 2 and "gradient" in what else good

    trainer = Scripted(steps=5, gradient_of=gradient, folder=tmp_path, tracker=tracker)
    if "loss" in what:
        trainer.objective.loss_of = lambda step: bad if step == 2 else 1.0
    sound = Scripted(steps=5)
    signal_in_step(sound, 1, signal.SIGTERM)
    sound.fit()
    path = tmp_path / "checkpoints" / "non_finite_step_2.pt"
    with pytest.raises(NonFiniteError, match=r"^step 2: loss .* and gradient norm ") as caught:
        trainer.fit()
    assert f"from step 2's own; the state before the step is in {path};" in str(caught.value)
    assert trainer.step == 2
    saved = load_checkpoint(path)
    assert saved["step"] == 2
    assert_same(saved["module"], sound.module.state_dict())
    assert_same(trainer.module.state_dict(), sound.module.state_dict())
    assert_same(trainer.optimizer.state_dict(), sound.optimizer.state_dict())
    assert tracker.flushes >= 1


def test_without_a_folder_no_path_is_named() -> None:
    trainer = Scripted(steps=1)
    trainer.objective.loss_of = lambda step: math.nan
    with pytest.raises(NonFiniteError, match="^step 0: loss nan") as caught:
        trainer.fit()
    assert "state before" not in str(caught.value)


def test_a_state_saved_before_a_bad_step_can_be_resumed(tmp_path: Path) -> None:
    trainer = Scripted(steps=4, folder=tmp_path)
    trainer.objective.loss_of = lambda step: math.nan if step == 2 else 1.0
    with pytest.raises(NonFiniteError, match="^step 2: loss nan"):
        trainer.fit()
    again, whole = Scripted(steps=4, folder=tmp_path), Scripted(steps=4)
    again.resume(tmp_path / "checkpoints" / "non_finite_step_2.pt")
    assert again.fit().reason == whole.fit().reason == "finished"
    assert_same(state_of(again), state_of(whole))


# --- resuming -----------------------------------------------------------------------------------


def _saved(folder: Path, **settings: Any) -> Path:
    Scripted(steps=2, folder=folder, **settings).fit()
    return last(folder)


def test_a_checkpoint_of_another_module_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    other = Scripted(steps=2, module=nn.Linear(5, 2))
    with pytest.raises(DataError, match=r"last\.pt: this checkpoint does not fit the run"):
        other.resume(path)


def test_a_checkpoint_of_another_optimiser_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    other = Scripted(steps=4, optimizer=plain_sgd)
    with pytest.raises(DataError, match=r"last\.pt: this checkpoint .* optimiser Adam, not SGD"):
        other.resume(path)


def test_a_checkpoint_of_other_groups_of_parameters_is_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    other = Scripted(
        steps=2, optimizer=lambda ps: torch.optim.Adam([{"params": [p]} for p in ps], lr=1e-3)
    )
    with pytest.raises(DataError, match=r"last\.pt: this checkpoint does not fit the run"):
        other.resume(path)


@pytest.mark.parametrize("missing", ["version", "module", "optimizer", "step", "stale"])
def test_a_checkpoint_without_a_part_is_refused(tmp_path: Path, missing: str) -> None:
    state = load_checkpoint(_saved(tmp_path))
    del state[missing]
    save_checkpoint(tmp_path / "part.pt", state)
    with pytest.raises(DataError, match=rf"part\.pt: .*(fit .*{missing}|{missing} None is not)"):
        Scripted(steps=2).resume(tmp_path / "part.pt")


def test_a_checkpoint_of_a_later_version_is_refused(tmp_path: Path) -> None:
    state = load_checkpoint(_saved(tmp_path)) | {"version": 99}
    save_checkpoint(tmp_path / "later.pt", state)
    with pytest.raises(DataError, match=r"^\S*later\.pt: checkpoint version 99 is not known here"):
        Scripted(steps=2).resume(tmp_path / "later.pt")


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.pt: there is no such checkpoint"):
        Scripted(steps=2).resume(str(tmp_path / "no.pt"))


def test_a_new_learning_rate_counts_after_a_resumption(tmp_path: Path) -> None:
    first = Scripted(steps=4, optimizer=plain_sgd, folder=tmp_path)
    signal_in_step(first, 1, signal.SIGTERM)
    first.fit()
    tracker = Recorder()
    second = Scripted(
        steps=4, log_every=1, tracker=tracker, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.5)
    )
    second.resume(last(tmp_path))
    second.fit()
    rates = [0.5 * second.settings.rate(s) for s in (2, 3)]
    assert tracker.series("train/learning_rate") == pytest.approx(rates)


def test_a_longer_run_goes_on_from_a_finished_one(tmp_path: Path) -> None:
    path = _saved(tmp_path, schedule="constant")
    longer, whole = (Scripted(steps=5, schedule="constant") for _ in range(2))
    longer.resume(path)
    longer.fit()
    whole.fit()
    assert longer.seen == [2, 3, 4]
    assert_same(dict(longer.module.state_dict()), dict(whole.module.state_dict()))
    assert_same(longer.optimizer.state_dict(), whole.optimizer.state_dict())


def test_seconds_add_up_over_resumptions(tmp_path: Path) -> None:
    Scripted(steps=2, folder=tmp_path).fit()
    state = load_checkpoint(last(tmp_path))
    assert state["seconds"] > 0
    save_checkpoint(last(tmp_path), state | {"seconds": 1000.0})
    again = Scripted(steps=4)
    again.resume(last(tmp_path))
    assert 1000 < again.fit().seconds < 1060


def test_time_of_the_processor_adds_up_and_is_unknown_where_an_earlier_release_began(
    tmp_path: Path,
) -> None:
    Scripted(steps=2, folder=tmp_path).fit()
    state = load_checkpoint(last(tmp_path))
    assert 0 < state["cpu_seconds"] < 60
    for known, kept in ((True, {"cpu_seconds": 1000.0}), (False, {})):
        earlier = {name: value for name, value in state.items() if name != "cpu_seconds"} | kept
        save_checkpoint(last(tmp_path), earlier)
        again = Scripted(steps=4)
        again.resume(last(tmp_path))
        spent = again.fit().cpu_seconds
        assert 1000 < spent < 1060 if known else math.isnan(spent)


def test_a_save_that_fails_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _saved(tmp_path)
    before = path.read_bytes()
    names = _names(tmp_path)

    def fail(*args: Any) -> None:
        raise OSError("no space left on device")

    again = Scripted(steps=4, folder=tmp_path)
    again.resume(path)
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        again.fit()
    assert path.read_bytes() == before
    assert _names(tmp_path) == names


def test_the_best_is_not_known_without_its_file(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    path.with_name("best.pt").unlink()
    again = Scripted(steps=2)
    again.resume(path)
    with pytest.raises(DataError, match="the best checkpoint is missing"):
        again.load_best()


def test_parameters_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    trainer = Scripted(
        steps=5, folder=tmp_path, clip=None, schedule="constant",
        gradient_of=lambda step, value: torch.full_like(value, 3e38),
        optimizer=lambda ps: torch.optim.SGD(ps, lr=1e38),
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"^step \d: .*not .*finite"):
        trainer.fit()
    assert load_checkpoint(last(tmp_path))["module"]["weight"].isfinite().all()


def test_other_options_of_the_optimiser_count_after_a_resumption(tmp_path: Path) -> None:
    Scripted(steps=2, folder=tmp_path, optimizer=plain_sgd).fit()
    again = Scripted(steps=4, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1, weight_decay=0.5))
    again.resume(last(tmp_path))
    assert again.optimizer.param_groups[0]["weight_decay"] == 0.5
