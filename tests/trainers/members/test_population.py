"""Members that stop, diverge, are best at different times, and are resumed."""

from __future__ import annotations

import logging
import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metalearn.checkpoint import load_checkpoint
from metalearn.errors import NonFiniteError
from metalearn.trainers import EnsembleTrainer
from tests.saved_runs.double import float64
from tests.support.alone import conv_network, mlp_network, networks
from tests.support.builders import Recorder, assert_same, ensemble_trainer
from tests.support.members import (
    STEADY,
    after_recording,
    mixed_networks,
    poisoned,
    rows_of,
    scripted,
)

SGD = torch.optim.SGD

# --- stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["batched", "loop"])
@pytest.mark.parametrize("count", [2, 4])
def test_a_member_out_of_patience_stops_and_no_other_notices(count: int, engine: str) -> None:
    def run(patience: int | None) -> EnsembleTrainer:
        trainer = ensemble_trainer(
            model=networks(conv_network, range(count), dropout=0.2), engine=engine,
            patience=patience, optimizer=partial(SGD, lr=0.1, momentum=0.9), **STEADY,
        )  # fmt: skip
        falling = [[9.0 - i] * count for i in range(5)]
        for row in falling[2:]:
            row[1] = 20.0  # best at step 2, so out of patience at step 6
        scripted(trainer, falling)
        if patience:

            def keep() -> None:
                if trainer.step == 6:
                    kept.update(rows_of(trainer, 1))

            after_recording(trainer, keep)
        result = trainer.fit()
        assert result.reason == "finished"
        return trainer

    kept: dict[str, Tensor] = {}
    stopped, whole = run(2), run(None)
    assert stopped.active.tolist() == [index != 1 for index in range(count)]
    assert stopped.endings == {1: "no better since step 2"}
    assert whole.active.all()
    assert not whole.endings
    assert_same(rows_of(stopped, 1), kept)
    assert any(not torch.equal(a, rows_of(whole, 1)[n]) for n, a in kept.items())
    for index in set(range(count)) - {1}:
        assert_same(stopped.best_steps[index], whole.best_steps[index])
        one, other = rows_of(stopped, index), rows_of(whole, index)
        if engine == "loop":
            assert_same(one, other)
        for name, value in one.items():  # rows of a batched product may round by where they lie
            torch.testing.assert_close(value, other[name], rtol=1e-12, atol=1e-12)


def test_training_ends_when_every_member_is_out_of_patience() -> None:
    trainer = ensemble_trainer(patience=1, **STEADY)
    scripted(trainer, [[1.0, 1.0, 1.0], [0.5, 2.0, 2.0], [3.0, 3.0, 3.0]])
    result = trainer.fit()
    assert (result.step, result.reason) == (4, "patience")
    assert trainer.endings == {
        0: "no better since step 2", 1: "no better since step 0", 2: "no better since step 0"
    }  # fmt: skip


# --- diverging ------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [False, True])
@pytest.mark.parametrize("engine", ["batched", "loop"])
def test_a_member_that_diverges_is_put_back_and_the_others_go_on(
    engine: str, loss: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def make() -> EnsembleTrainer:
        return ensemble_trainer(model=mixed_networks(), engine=engine, clip=1.0, **STEADY)

    tracker = Recorder()
    trainer, whole = make(), make()
    trainer.tracker = tracker
    poisoned(trainer, [2], 5, loss=loss)
    for other in (trainer, whole):
        falling = [[5.0 - i] * 4 for i in range(5)]
        falling[2][2] = 100.0  # member 2 was best at step 2
        scripted(other, falling)
    best: dict[str, Tensor] = {}

    def note() -> None:
        if whole.step == 2:
            best.update(rows_of(whole, 2))

    after_recording(whole, note)
    with caplog.at_level(logging.WARNING):
        assert trainer.fit().reason == "finished"
    whole.fit()
    assert trainer.active.tolist() == [True, True, False, True]
    what = f"loss {'inf' if loss else '[0-9.]+'} and gradient norm nan not finite"
    assert list(trainer.endings) == [2]
    assert any("member 2 is not trained any more: diverged" in r.message for r in caplog.records)
    pattern = rf"diverged at step 5 \({what}\), put back to step 2"
    assert re.fullmatch(pattern, trainer.endings[2]), trainer.endings
    assert_same(rows_of(trainer, 2), best)
    for index in (0, 1, 3):
        one, other = rows_of(trainer, index), rows_of(whole, index)
        if engine == "loop":
            assert_same(one, other)
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=1e-12, atol=1e-12)
    assert tracker.series("train/members_active")[0] == 4.0


def _linear_network(seed: int) -> nn.Module:
    """Two layers whose weights multiply: no dead ReLU saves it from a rate that is too large."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 3))


def test_a_learning_rate_that_is_far_too_large_ends_its_member_alone() -> None:
    rates = [0.05, 1e35, 0.1]
    settings = {"optimizer": partial(SGD, lr=1.0), "clip": None, **STEADY}
    with float64():
        trainer = ensemble_trainer(model=networks(_linear_network, range(3)), lr=rates, **settings)
        trainer.fit()
        sound = ensemble_trainer(
            model=networks(_linear_network, [0, 2]), seeds=[0, 2], lr=[0.05, 0.1], **settings
        )
        sound.fit()
    assert trainer.active.tolist() == [True, False, True]
    assert trainer.endings[1].startswith("diverged at step")
    for index, other in ((0, 0), (2, 1)):
        for name, value in rows_of(trainer, index).items():
            assert value.dtype == torch.float64
            torch.testing.assert_close(value, rows_of(sound, other)[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("better", [[0], [1, 2], [0, 1, 2], []])
def test_best_members_of_another_precision_are_gone_on_from(
    tmp_path: Path, better: list[int]
) -> None:
    """A run in float32 whose module is float64 now keeps what is better in float64."""
    first = ensemble_trainer(folder=tmp_path, **{**STEADY, "steps": 2})
    scripted(first, [[5.0] * 3])
    first.fit()
    first.load_best()
    with float64():
        trainer = ensemble_trainer(**{**STEADY, "steps": 4})
        trainer.resume(tmp_path / "checkpoints" / "last.pt")
        scripted(trainer, [[1.0 if index in better else 9.0 for index in range(3)]])
        trainer.fit()
        last = [rows_of(trainer, index) for index in range(3)]
        trainer.load_best()
        for index in range(3):
            wanted = last[index] if index in better else rows_of(first, index)
            for name, value in rows_of(trainer, index).items():
                assert value.dtype == torch.float64
                assert torch.equal(value, wanted[name].double())


@pytest.mark.parametrize("eval_every", [1, 3])
def test_all_members_diverged_is_an_error(eval_every: int, tmp_path: Path) -> None:
    settings = {**STEADY, "eval_every": eval_every}
    trainer = ensemble_trainer(
        model=networks(mlp_network, range(2)), folder=tmp_path, clip=None, **settings
    )

    class Explosion:
        optimizer, base_rates = trainer.optimizer, trainer.loop.update.base_rates

        def __call__(self, active: Tensor, factor: float) -> None:
            for parameter in trainer.module.parameters():
                parameter.data.fill_(math.inf)

    trainer.loop.update = Explosion()
    first = [rows_of(trainer, index) for index in range(2)]
    pattern = (
        r"^step 1: every member has diverged \(member 0: diverged at step 1 .*; member 1: "
        r"diverged at step 1 .*, put back to step 0\); their best states are in "
        r".*non_finite_step_1\.pt$"
    )
    with pytest.raises(NonFiniteError, match=pattern):
        trainer.fit()
    for index in range(2):
        assert_same(rows_of(trainer, index), first[index])
    saved = load_checkpoint(tmp_path / "checkpoints" / "non_finite_step_1.pt")
    assert_same(dict(saved["module"]), dict(trainer.module.state_dict()))


def test_the_last_member_may_diverge_after_the_others_have_stopped() -> None:
    trainer = ensemble_trainer(patience=1, log_every=1, tracker=Recorder(), **STEADY)
    scripted(trainer, [[1.0, 1.0, 1.0], [2.0, 0.5, 2.0]])
    poisoned(trainer, [1], 3, loss=True)
    result = trainer.fit()
    assert (result.step, result.reason) == (4, "patience")
    assert trainer.endings[1].startswith("diverged at step 3 (loss inf")
    trainer.load_best()
