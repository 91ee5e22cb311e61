"""Audits of whole private trainings: stacks are trained as a trainer trains, faults are found."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metalearn.auditing import audit_private_training
from metalearn.errors import SettingError
from metalearn.trainers.supervised.private_objective import PrivateObjective
from tests.auditing.test_private_step import not_clipped
from tests.trainers.supervised.test_private import private

SETTINGS: Any = {"steps": 20, "schedule": "constant", "max_norm": 0.3}
SGD: Any = lambda ps: torch.optim.SGD(ps, lr=1.0, momentum=0.5)  # noqa: E731


@pytest.mark.parametrize("sampling", ["poisson", "fixed_size", "shuffled"])
def test_a_stack_without_noise_is_trained_as_a_trainer_is(
    sampling: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PrivateObjective, "noisy", lambda self, grads, size, step: grads)
    given: Any = {"noise": "seeded", "sampling": sampling, "optimizer": SGD, **SETTINGS}
    given |= {"schedule": "cosine", "accountant": "rdp"}
    found = audit_private_training(private(seed=0, **given), models=16, models_at_once=3)
    trainer = private(seed=0, **given)  # its batches are those of seed 0
    trainer.fit()
    data = trainer.data
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    x, y = data.take(data.splits["train"][order[:1]])
    with torch.no_grad():
        trainer.module.eval()
        loss = torch.nn.functional.cross_entropy(trainer.module(x), (y + 1) % 3)
    torch.testing.assert_close(found.outside[0], loss, rtol=1e-4, atol=1e-6)
    assert found.inside.mean() < found.outside.mean()


def test_a_right_training_is_not_refuted() -> None:
    told: list[int] = []
    trainer = private(noise_multiplier=2.0, optimizer=SGD, **SETTINGS)
    found = audit_private_training(trainer, models=32, tell=told.append)
    assert not found.refuted and found.claimed > 1
    assert told == [*range(20)] * 2
    assert found.as_json()["models"] == 32
    assert trainer.results()["privacy"]["steps"] == 0


def test_gradients_that_are_not_clipped_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    given: Any = {**SETTINGS, "max_norm": 0.01, "noise": "seeded"}
    trainer = private(noise_multiplier=20.0, optimizer=SGD, **given)
    right = audit_private_training(trainer, models=160)
    not_clipped(monkeypatch)
    wrong = audit_private_training(trainer, models=160)
    assert not right.refuted
    assert wrong.refuted and wrong.inside.mean() + 1 < wrong.outside.mean()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"models": 15}, "models=15: a whole number of at least 16"),
        ({"models": 17}, "models=17: an even number is needed"),
        ({"models_at_once": 0}, "models_at_once=0: "),
        ({"confidence": 2}, "confidence=2: "),
    ],
)
def test_mistakes_are_one_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        audit_private_training(private(), **given)


def test_trainings_that_cannot_be_stacked_are_refused() -> None:
    with pytest.raises(SettingError, match="method='loop'|trainer.method='loop'"):
        audit_private_training(private(method="loop"))
    trainer = private(steps=1)
    trainer.fit()
    with pytest.raises(SettingError, match="trainer='at step 1': one that has not begun"):
        audit_private_training(trainer)
