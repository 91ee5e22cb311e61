"""Members that are best at different times, and runs of members that are resumed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metalearn import Ensemble
from metalearn.checkpoint import load_checkpoint
from metalearn.errors import DataError
from metalearn.trainers import EnsembleTrainer
from metalearn.trainers.loop.protocols import Evaluation
from tests.support.alone import conv_network, mlp_network, networks
from tests.support.builders import (
    after_validation,
    assert_same,
    ensemble_trainer,
    last,
    signal_in_step,
    without_times,
)
from tests.support.members import (
    STEADY,
    after_recording,
    member_state,
    mixed_networks,
    poisoned,
    rows_of,
    scripted,
)

# --- best states ----------------------------------------------------------------------------------


def test_the_best_state_is_each_members_own(tmp_path: Path) -> None:
    trainer = ensemble_trainer(model=mixed_networks(), folder=tmp_path, **STEADY)
    scores = [
        [3.0, 1.0, 3.0, math.nan], [2.0, 2.0, 1.0, 5.0], [1.0, 2.0, 1.0, 4.0],
        [2.0, 2.0, 0.5, 4.5], [2.0, 2.0, 2.0, 3.0],
    ]  # fmt: skip
    best_at = [4, 0, 6, 8]
    scripted(trainer, scores)
    seen: dict[int, list[dict[str, Tensor]]] = {}

    def note() -> None:
        seen[trainer.step] = [rows_of(trainer, index) for index in range(4)]

    after_recording(trainer, note)
    result = trainer.fit()
    assert trainer.best_steps.tolist() == best_at
    assert trainer.best_values.tolist() == [1.0, 1.0, 0.5, 3.0]
    assert (result.best_step, result.best_value) == (8, 1.0)
    trainer.load_best()
    for index, step in enumerate(best_at):
        assert_same(rows_of(trainer, index), seen[step][index])
    saved = load_checkpoint(tmp_path / "checkpoints" / "best.pt")
    assert_same(dict(saved["module"]), dict(trainer.module.state_dict()))


@pytest.mark.parametrize(("monitor", "larger"), [("loss", False), ("accuracy", True)])
def test_members_are_judged_by_their_own_validation(monitor: str, larger: bool) -> None:
    trainer = ensemble_trainer(monitor=monitor, steps=30, eval_every=3, lr=0.01)
    found: list[Tensor] = []

    def noted(evaluation: Evaluation) -> Evaluation:
        x, y = trainer.data.part("validation")
        logits = torch.stack([m.eval()(x) for m in trainer.ensemble.members()])
        if larger:
            own = (logits.argmax(-1) == y).double().mean(1)
        else:
            own = torch.stack([torch.nn.functional.cross_entropy(z, y) for z in logits])
        found.append(own.detach().double())
        scores = evaluation.scores.double()
        torch.testing.assert_close(scores, found[-1], rtol=1e-5, atol=1e-6)
        return evaluation

    after_validation(trainer, noted)
    trainer.fit()
    values = torch.stack(found)
    best = values.max(0) if larger else values.min(0)
    torch.testing.assert_close(trainer.best_values, best.values, rtol=1e-5, atol=1e-6)


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [(3,), (1, 4, 6)])
def test_resumed_is_uninterrupted_with_members_that_stopped(
    stops: tuple[int, ...], tmp_path: Path
) -> None:
    def make(folder: Path) -> EnsembleTrainer:
        trainer = ensemble_trainer(
            model=Ensemble.from_modules(
                [conv_network(i) if i % 2 else mlp_network(i, dropout=0.3) for i in range(4)]
            ),
            lr=[0.1, 0.01, 0.2, 0.1], weight_decay=0.01, patience=2, folder=folder,
            checkpoint_every=3, bootstrap=True, max_shift=1, **{**STEADY, "eval_every": 1},
        )  # fmt: skip
        scripted(trainer, [[9.0 - i, 9.0 + i, 9.0 - i, 9.0 - i] for i in range(9)])
        poisoned(trainer, [3], 5, loss=True)  # 1 is out of patience at step 2
        return trainer

    whole = make(tmp_path / "whole")
    whole.fit()
    assert set(whole.endings) == {1, 3}
    folder = tmp_path / "parts"
    for number, stop in enumerate(stops):
        trainer = make(folder)
        if number:
            trainer.resume(last(folder))
        signal_in_step(trainer, stop, 15)
        assert trainer.fit().reason == "interrupted"
    resumed = make(folder)
    resumed.resume(last(folder))
    assert resumed.fit().reason == "finished"
    assert_same(member_state(resumed), member_state(whole))
    for name in ("last.pt", "best.pt"):
        one, two = (load_checkpoint(p / "checkpoints" / name) for p in (folder, tmp_path / "whole"))
        assert_same(without_times(one), without_times(two))


def test_a_resumed_run_takes_the_dropout_that_is_set_now(tmp_path: Path) -> None:
    def make(rate: float) -> EnsembleTrainer:
        model = networks(mlp_network, range(2), dropout=0.1)
        return ensemble_trainer(model=model, dropout=rate, folder=tmp_path, **STEADY)

    make(0.2).fit()
    resumed = make(0.7)
    resumed.resume(last(tmp_path))
    assert [float(m.network[3].p) for m in resumed.ensemble.members()] == pytest.approx([0.7] * 2)


def test_a_checkpoint_of_other_members_is_refused(tmp_path: Path) -> None:
    ensemble_trainer(folder=tmp_path, **STEADY).fit()
    other = ensemble_trainer(model=networks(mlp_network, range(2)))
    with pytest.raises(DataError, match=r"last\.pt: this checkpoint does not fit the run"):
        other.resume(last(tmp_path))


class Scaled(torch.nn.Module):
    """With a parameter that is a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.linear = torch.nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.linear(x.flatten(1))


def test_parameters_that_are_single_numbers() -> None:
    trainer = ensemble_trainer(model=Ensemble.from_factory(Scaled, range(3)), **STEADY)
    trainer.fit()
    scales = [member.scale.item() for member in trainer.ensemble.members()]
    assert len(set(scales)) == 3
