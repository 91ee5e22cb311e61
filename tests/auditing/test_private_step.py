"""Audits of a private step: a right one passes, planted faults do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.auditing import audit_private_step, gaussian_epsilon
from metalearn.core import clipped_gradient
from metalearn.errors import SettingError
from metalearn.trainers.supervised.private_objective import PrivateObjective
from tests.trainers.supervised.test_private import private

TRIALS: Any = {"trials": 400}


def not_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(self: Any, params: Any, batch: Any) -> Any:
        return clipped_gradient(self.loss, params, batch, max_norm=1e6)

    monkeypatch.setattr(PrivateObjective, "clipped", whole)


def half_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PrivateObjective.noisy

    def half(self: Any, grads: dict[str, Tensor], normalizer: float, *, step: int) -> Any:
        noisy = right(self, grads, normalizer, step=step)
        return {name: (noisy[name] + grads[name]) / 2 for name in noisy}

    monkeypatch.setattr(PrivateObjective, "noisy", half)


def noise_again(monkeypatch: pytest.MonkeyPatch) -> None:
    right, kept = PrivateObjective.noisy, {}

    def again(self: Any, grads: dict[str, Tensor], normalizer: float, *, step: int) -> Any:
        if not kept:
            noisy = right(self, grads, normalizer, step=step)
            kept.update({name: noisy[name] - grads[name] for name in grads})
        return {name: grads[name] + kept[name] for name in grads}

    monkeypatch.setattr(PrivateObjective, "noisy", again)


def less_than_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PrivateObjective.__init__

    def begun(self: Any, *given: Any, **by_name: Any) -> None:
        right(self, *given, **by_name)
        self.noise_multiplier /= 2

    monkeypatch.setattr(PrivateObjective, "__init__", begun)


def noise_that_is_divided_again(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PrivateObjective.gradient

    def gradient(self: Any, *given: Any, **by_name: Any) -> Any:
        found = right(self, *given, **by_name)
        noise = found.noise
        assert noise is not None
        return replace(found, noise=lambda grads, size: noise(grads, 2 * size))

    monkeypatch.setattr(PrivateObjective, "gradient", gradient)


FAULTS = [not_clipped, half_the_noise, noise_again, less_than_is_counted]
FAULTS += [noise_that_is_divided_again]


def test_bounds_of_all_scores_hold_together() -> None:
    """Worlds that are wholly apart have the rates of Clopper and Pearson, nothing seen in T/2."""
    found = audit_private_step(private(noise_multiplier=1e-2), trials=400, confidence=0.9)
    each = (1 - 0.9) / len(found.bounds) / 2  # of every score both rates
    assert len(found.bounds) == 2
    for bound in found.bounds.values():
        assert bound.false_positives == pytest.approx(1 - each ** (1 / 200))
        assert bound.false_negatives == bound.false_positives


@pytest.mark.parametrize("sigma", [0.5, 2.0])
@pytest.mark.parametrize("noise", ["secure", "seeded"])
@pytest.mark.parametrize("step", [0, 4])
def test_a_right_step_is_told_apart_as_well_as_its_noise_allows(
    sigma: float, noise: Any, step: int
) -> None:
    trainer = private(noise_multiplier=sigma, noise=noise, steps=max(step, 1))
    if step:
        trainer.fit()
    spent = trainer.results()["privacy"]["steps"]
    found = audit_private_step(trainer, confidence=1 - 1e-6, **TRIALS)  # wrong once in so many
    assert not found.refuted
    assert found.claimed == pytest.approx(gaussian_epsilon(1 / sigma, 1e-5))
    assert found.canary_norm > 2 * found.max_norm
    assert sigma > 1 or found.bounds["one step"].mu > 0.2  # and it is not blind
    assert trainer.results()["privacy"]["steps"] == spent


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("noise", ["secure", "seeded"])
def test_faults_are_found(fault: Any, noise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    found = audit_private_step(private(noise_multiplier=1.0, noise=noise), trials=800)
    assert found.refuted
    assert found.lower_bound > found.claimed
    assert found.as_json()["refuted"] is True


def test_a_training_that_goes_on_goes_on_as_if_there_had_been_no_audit() -> None:
    for given in ({"clip_quantile": 0.5}, {"noise_bands": 2, "batch_size": 4}):
        trainer: Any = private(**given)
        trainer.fit()
        objective = trainer.objective
        kept = objective.noise, objective.following, str(objective.state())
        audit_private_step(trainer, trials=8)
        assert (objective.noise, objective.following, str(objective.state())) == kept
        assert objective.noise._next == 6


def test_a_batch_of_one() -> None:
    trainer = private(batch_size=1, noise_multiplier=0.5)
    found = audit_private_step(trainer, confidence=1 - 1e-6, **TRIALS)
    assert not found.refuted and found.bounds["one step"].mu > 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 7}, "trials=7: a whole number of at least 8"),
        ({"confidence": 0}, "confidence=0: "),
    ],
)
def test_mistakes_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        audit_private_step(private(), **changes)


def test_a_network_without_a_gradient_has_no_canary() -> None:
    trainer = private()
    with torch.no_grad():
        for value in trainer.params.values():
            value.fill_(torch.nan)
    with pytest.raises(SettingError, match="a canary without a gradient"):
        audit_private_step(trainer, **TRIALS)
