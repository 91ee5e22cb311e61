"""Audits of whole private trainings: stacks are trained as a trainer trains, faults are found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.auditing import audit_private_training
from metalearn.errors import SettingError
from metalearn.models import Dropout
from metalearn.privacy import PartitionedSampling, PoissonSampling
from metalearn.trainers import PrivateTrainer
from metalearn.trainers.supervised.private_objective import PrivateObjective
from tests.auditing.test_private_step import not_clipped
from tests.trainers.supervised.test_private import private

SETTINGS: Any = {"steps": 20, "schedule": "constant", "max_norm": 0.3}
SGD: Any = lambda ps: torch.optim.SGD(ps, lr=1.0, momentum=0.5)  # noqa: E731


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("sampling", ["poisson", "fixed_size", "shuffled"])
@pytest.mark.parametrize("more", [{}, {"clip": 0.05}, {"average": 0.9}, {"dropout": True}])
def test_a_stack_without_noise_is_trained_as_a_trainer_is(
    sampling: Any, more: dict[str, Any], taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PrivateObjective, "noisy", lambda self, grads, size, step: grads)
    given: Any = {"noise": "seeded", "sampling": sampling, **SETTINGS, **more}
    given |= {"schedule": "cosine", "accountant": "rdp", "optimizer": SGD}
    dropout = given.pop("dropout", False)

    def trainer(data: Any = None, seed: int = 0) -> PrivateTrainer:
        layers = [torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)]
        torch.manual_seed(0)
        model = torch.nn.Sequential(*layers[:2], *[Dropout(0.5)] * dropout, layers[2])
        with torch.no_grad():
            for value in model.parameters():
                value.copy_(torch.linspace(-0.5, 0.7, value.numel()).sin().view(value.shape))
        return private(data, seed=seed, model=model, **given)

    found = audit_private_training(trainer(), models=16, models_at_once=3)
    data = trainer().data
    first = torch.randperm(30, generator=torch.Generator().manual_seed(0))[:1]
    place = data.splits["train"][first]
    x, y = data.take(place)
    wrong = (y + 1) % 3
    if taken:  # the ninth network's batches are those of seed 8
        data = _with_canary(data, place, wrong, beside=sampling == "poisson")
    elif sampling == "shuffled":
        pytest.skip("no trainer leaves a sample out of its place")
    by_itself = trainer(data, seed=8 * taken)
    if taken and sampling == "poisson":
        drawn = PoissonSampling(data.splits["train"], 8 / 30, seed=8)
        by_itself.objective.batches.sampling = drawn  # type: ignore[attr-defined]
    if dropout:  # masks are those of the audited trainer's seed
        by_itself.module.load_state_dict(trainer().module.state_dict())
    by_itself.fit()
    by_itself.load_best()
    with torch.no_grad():
        by_itself.module.eval()
        loss = torch.nn.functional.cross_entropy(by_itself.module(x), wrong)
    one = found.inside if taken else found.outside
    torch.testing.assert_close(one[0], loss, rtol=1e-4, atol=1e-6)
    assert len(set(one.tolist())) == 8


def _with_canary(data: Any, place: Tensor, wrong: Tensor, *, beside: bool) -> Any:
    """The data with a canary beside all samples, or in the place of one."""
    if not beside:
        return replace(data, targets=data.targets.index_copy(0, place, wrong))
    count, train = len(data.targets), data.splits["train"]
    splits = {**data.splits, "train": torch.cat([train, torch.tensor([count])])}
    inputs = torch.cat([data.inputs, data.inputs[place]])
    return replace(data, inputs=inputs, targets=torch.cat([data.targets, wrong]), splits=splits)


def test_noise_of_one_network_is_not_that_of_another() -> None:
    """Also where it is seeded, and networks are trained in several stacks."""
    empty: Any = {"noise": "seeded", "batch_size": 1, "steps": 1, "optimizer": SGD}
    found = audit_private_training(private(**empty), models=40, models_at_once=3)
    assert len({round(float(v), 6) for v in torch.cat([found.inside, found.outside])}) == 40


def test_examples_of_correlated_noise_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is in a batch of one of two parts is in none of the other's, canary or not."""
    trainer = private(noise_bands=2, batch_size=4, optimizer=SGD, **SETTINGS)
    seen: list[Any] = []
    right = PartitionedSampling.draw

    def draw(self: Any, step: int) -> Any:
        found = right(self, step)
        count = sum(len(part) for part in self._parts)
        seen.append((count, self.rate, self, step % 2, found.tolist()))
        return found

    monkeypatch.setattr(PartitionedSampling, "draw", draw)
    past = trainer.objective.noise._past
    audit_private_training(trainer, models=16)
    assert {(count, rate) for count, rate, *_ in seen} == {(31, 8 / 30), (30, 8 / 30)}
    parts = [{(i, k) for _, _, k, half, rows in seen if half == which for i in rows}
             for which in (0, 1)]  # fmt: skip
    assert parts[0] and parts[1] and not parts[0] & parts[1]
    assert trainer.objective.noise._past is past  # a training that goes on goes on with its noise


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
    slow: Any = lambda ps: torch.optim.SGD(ps, lr=0.3, momentum=0.5)  # noqa: E731
    trainer = private(noise_multiplier=20.0, optimizer=slow, **given)
    right = audit_private_training(trainer, models=240)
    not_clipped(monkeypatch)
    wrong = audit_private_training(trainer, models=240)
    assert not right.refuted
    assert wrong.refuted and wrong.inside.mean() + 0.5 < wrong.outside.mean()


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
