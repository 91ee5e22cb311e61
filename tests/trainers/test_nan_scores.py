"""Validations and tests that are NaN are said to be, and are never the best or a score."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.checkpoint import load_checkpoint
from metalearn.errors import NonFiniteError
from metalearn.trainers import MAML, Trainer
from metalearn.trainers.loop.protocols import Evaluation
from tests.saved_runs.double import copy_of
from tests.support.builders import (
    Scripted,
    after_validation,
    ensemble_trainer,
    episode_trainer,
    last,
    sinusoid_trainer,
)
from tests.support.commands import call
from tests.trainers.test_determinism import learners_trainer, per_sample_trainer

NAN = math.nan


def weights_of(trainer: Trainer, member: int | None = None) -> None:
    """Make the last weight NaN after training, of one member or of all."""
    *_, value = trainer.module.parameters()
    with torch.no_grad():
        (value if member is None else value[member]).fill_(NAN)


def test_a_first_validation_that_is_nan_gives_way(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result = Scripted([NAN, NAN, 0.1, NAN], steps=3, eval_every=1).fit()
    assert (result.best_step, result.best_value) == (2, 0.1)
    said = [r.getMessage() for r in caplog.records]
    assert said == [
        f"step {step}: validation/score is NaN in validation and cannot be the best"
        for step in (0, 1, 3)
    ]


def test_nan_does_not_count_as_better_for_patience() -> None:
    trainer = Scripted([NAN], steps=9, eval_every=1, patience=3)
    with pytest.raises(NonFiniteError, match="^step 3: validation/score was NaN in every valid"):
        trainer.fit()


def test_a_run_of_nan_ends_with_an_error_and_its_state(tmp_path: Path) -> None:
    trainer = Scripted([NAN], steps=2, eval_every=1, folder=tmp_path)
    with pytest.raises(NonFiniteError, match=r"no state is known to be good; .*checkpoints$"):
        trainer.fit()
    assert load_checkpoint(last(tmp_path))["step"] == 2


def diverging(**settings: Any) -> Trainer:
    """Adaptation that leaves float32 at the first step."""
    maml = MAML(inner_lr=1e30, inner_steps=0, eval_steps=4)
    return episode_trainer(maml=maml, **settings)


def test_adaptation_that_diverges_is_not_chance() -> None:
    trainer = diverging()
    numbers = trainer.validate()
    assert math.isnan(numbers["validation/accuracy_after"])
    assert not math.isnan(numbers["validation/accuracy_before"])
    with pytest.raises(NonFiniteError, match="^step 6: validation/accuracy_after was NaN in every"):
        trainer.fit()
    with pytest.raises(NonFiniteError, match="^test: the predictions of all 7 tasks are NaN after"):
        trainer.test(7)  # type: ignore[attr-defined]


def test_a_few_tasks_that_are_nan_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = episode_trainer()
    sample = trainer.tasks.sample

    def poisoned(split: Any, indices: Any, **more: Any) -> Any:
        batch = sample(split, indices, **more)
        for row, index in enumerate(indices):
            if index in (2, 5):
                batch.support[0][row] = NAN
        return batch

    monkeypatch.setattr(trainer.tasks, "sample", poisoned)
    with caplog.at_level(logging.WARNING):
        report = trainer.test(8)
    assert report.accuracies is not None
    assert not report.accuracies[:, 0].isnan().any() and report.accuracies[0, -1].isnan()
    (record,) = caplog.records
    assert record.getMessage() == (
        "test: the predictions of 2 of 8 tasks are NaN (2, 5), so the means over tasks are NaN"
    )


TRAINERS: dict[str, tuple[Callable[..., Trainer], int | None, str]] = {
    "waves": (sinusoid_trainer, None, "the predictions of all 600 tasks are NaN after"),
    "pictures": (episode_trainer, None, "the predictions of all 600 tasks are NaN after"),
    "learners": (learners_trainer, 1, "of all 600 tasks are NaN with those of member 1 after"),
    "ensemble": (ensemble_trainer, 2, "the predictions of member 2 are NaN"),
    "per-sample": (per_sample_trainer, None, "the predictions are NaN"),
}


@pytest.mark.parametrize("case", TRAINERS.values(), ids=TRAINERS)
def test_nan_weights_are_no_score(case: tuple[Callable[..., Trainer], int | None, str]) -> None:
    make, member, message = case
    trainer = make()
    weights_of(trainer, member)
    with pytest.raises(NonFiniteError, match=message):
        trainer.test()  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", [ensemble_trainer, per_sample_trainer])
def test_one_sample_whose_predictions_are_nan_ends_a_test(make: Callable[..., Trainer]) -> None:
    """Of the split that is scored, whatever the validation says."""
    trainer: Any = make()
    data = trainer.data
    take = data.take

    def poisoned(indices: torch.Tensor, **more: Any) -> Any:
        inputs, targets = take(indices, **more)
        lost = torch.isin(indices, data.splits["test"][1])
        return torch.where(lost.view(-1, *[1] * (inputs.dim() - 1)), NAN, inputs), targets

    object.__setattr__(data, "take", poisoned)
    with pytest.raises(NonFiniteError, match=r"^test: the predictions.* are NaN"):
        trainer.test()
    trainer.test(split="train")


def test_a_member_whose_validation_is_nan_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Its parameters are finite; what it answers is not."""
    trainer = ensemble_trainer(steps=2, eval_every=1)

    def poisoned(found: Evaluation) -> Evaluation:
        found.scores[1] = NAN
        return found

    after_validation(trainer, poisoned)
    with caplog.at_level(logging.WARNING):
        result = trainer.fit()
    assert not math.isnan(result.best_value)
    assert trainer.best_values.isnan().tolist() == [False, True, False]
    assert trainer.best_steps[1] == 0
    said = {r.getMessage().partition(": ")[2] for r in caplog.records}
    assert said == {"member 1 is NaN in validation and cannot be the best"}


def test_an_evaluation_of_nan_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = Path(__file__).parents[1] / "saved_runs" / "v1" / "meta_sinusoid-finished"
    folder = copy_of(saved, tmp_path / "run")
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("inner_lr: 0.01", "inner_lr: 1.0e+30"))
    monkeypatch.chdir(tmp_path)
    outcome = call("evaluate", f"run={folder}", "tasks=4", monkeypatch=monkeypatch, capsys=capsys)
    assert outcome.code == 1
    assert "error: test: the predictions of all 4 tasks are NaN after adaptation" in outcome.err
    assert not list(folder.glob("evaluation*"))
