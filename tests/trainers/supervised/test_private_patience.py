"""Private trainings that patience ends: what they claim is what was planned.

Axes: none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.errors import DataError, SettingError
from metalearn.models import MLP
from metalearn.privacy import PrivacyLedger, SampledGaussian, privacy_spent
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import MAML, PrivateMetaTrainer, PrivateTrainer, Trainer
from tests.support.builders import last, signal_in_step
from tests.support.diagnostic_cases import blobs

pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
DELTA = 1e-3
QUIET: dict[str, Any] = {"progress": False, "delta": DELTA, "reserve": 1, "noise_multiplier": 2.0}
IMPATIENT: dict[str, Any] = {"steps": 20, "eval_every": 2, "patience": 1, "schedule": "constant"}


def still(parameters: Any) -> torch.optim.Optimizer:
    """So that no score of a public validation is better than the first one."""
    return torch.optim.SGD(parameters, lr=0.0)


def private(**settings: Any) -> PrivateTrainer:
    model = MLP((4,), 3, hidden=(5,), activation="tanh")
    given = {**QUIET, **IMPATIENT, "batch_size": 8, "validation": "public", "optimizer": still}
    return PrivateTrainer(model, blobs(), **{**given, **settings})


def of_tasks(**settings: Any) -> PrivateMetaTrainer:
    given: Any = {**QUIET, **IMPATIENT, "users": 30, "meta_batch": 4, "validation": "public"}
    given |= {"validation_tasks": 5, "optimizer": still, "maml": MAML(inner_lr=0.02, eval_steps=2)}
    model = MLP((1,), 1, hidden=(6,))
    return PrivateMetaTrainer(model, SinusoidTasks(shot=4, query=4), **{**given, **settings})


@pytest.mark.parametrize("make", [private, of_tasks])
@pytest.mark.parametrize("reserve", [1, 5, 100])
def test_what_is_claimed_is_all_that_was_planned(make: Any, reserve: int, tmp_path: Path) -> None:
    trainer = make(folder=tmp_path, reserve=reserve)
    result = trainer.fit()
    assert (result.step, result.reason) == (2, "patience")
    mechanism = trainer.account.mechanism
    planned = privacy_spent([(mechanism, 20)], DELTA).epsilon
    assert trainer.account.spent().epsilon == planned
    told = trainer.results()["privacy"]
    assert told["epsilon"] == planned
    assert told["steps"] + told.get("steps_left", 0) == 20
    ledger = PrivacyLedger(tmp_path / "privacy.jsonl")
    assert ledger.composed() == [(mechanism, 20)]
    seen = make(folder=tmp_path, reserve=reserve)
    seen.resume(last(tmp_path))
    assert seen.account.spent().epsilon == planned
    assert seen.fit().reason == "patience"  # there is nothing to do, and nothing more is spent
    assert ledger.composed() == [(mechanism, 20)]


@pytest.mark.parametrize("settings", [{"steps": 2}, {"steps": 2, "patience": None}])
def test_a_plan_is_not_forgotten_by_who_goes_on_with_fewer_steps(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    trainer = private(folder=tmp_path)
    trainer.fit()
    seen = private(folder=tmp_path, **settings)
    seen.resume(last(tmp_path))
    seen.fit()
    assert seen.account.spent().epsilon == trainer.account.spent().epsilon


def test_a_run_that_a_signal_ends_claims_all_that_was_planned(tmp_path: Path) -> None:
    """Outputs could have ended it before; and it is gone on with at no further cost."""
    trainer = private(folder=tmp_path, patience=9)
    signal_in_step(trainer, 3, 15)
    assert trainer.fit().reason == "interrupted"
    mechanism = trainer.account.mechanism
    assert trainer.account.steps() == [(mechanism, 4)]
    planned = privacy_spent([(mechanism, 20)], DELTA).epsilon
    assert trainer.account.spent().epsilon == planned
    resumed = private(folder=tmp_path, patience=9)
    resumed.resume(last(tmp_path))
    resumed.fit()
    assert resumed.account.spent().epsilon == planned


def test_without_patience_what_is_claimed_is_what_was_taken() -> None:
    trainer = private(patience=None)
    signal_in_step(trainer, 3, 15)
    trainer.fit()
    taken = privacy_spent([(trainer.account.mechanism, 4)], DELTA).epsilon
    assert trainer.account.spent().epsilon == taken


def test_scores_that_patience_makes_needless_count_too(tmp_path: Path) -> None:
    """Eleven are planned; noise that is small leaves the first one the best."""
    trainer = private(validation="noisy", validation_noise=1e-2, folder=tmp_path)
    assert trainer.fit().step < 20
    assert trainer.noisy is not None
    scores = trainer.noisy.account
    ledger = PrivacyLedger(tmp_path / "privacy.validation.jsonl")
    assert ledger.composed() == [(scores.mechanism, 11)]
    told = trainer.results()["privacy"]["validation"]
    assert told["scores"] < 11 and told["epsilon"] == scores.spent().epsilon
    whole = private(validation="noisy", validation_noise=1e-2, patience=None)
    whole.fit()
    assert whole.noisy is not None
    assert whole.noisy.account.steps() == [(scores.mechanism, 11)]
    assert whole.noisy.account.spent().epsilon == scores.spent().epsilon


def test_a_budget_is_claimed_whole_by_who_stops_early(tmp_path: Path) -> None:
    trainer = private(batch_growth=16, accountant="rdp", folder=tmp_path)
    account = trainer.account
    assert account.budget is not None and trainer.fit().step == 2
    assert account.spent().epsilon == account.budget.epsilon([(account.mechanism, 20)])
    others = PrivacyLedger(tmp_path / "privacy.jsonl").composed()
    largest = SampledGaussian("poisson", 30, 16, 2.0)
    assert privacy_spent(others, DELTA) == privacy_spent([(largest, 20)], DELTA)


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("noisy", "public", "validation is 'public', but noisy, as at the start of the run, is"),
        ("noisy", "none", "validation is 'none', but noisy, as at the start of the run, is"),
        ("public", "noisy", "validation is 'noisy', but none or public, as at the start of the"),
        ("none", "noisy", "validation is 'noisy', but none or public, as at the start of the"),
    ],
)
def test_scores_are_not_forgotten_by_another_validation(
    before: str, after: str, sentence: str, tmp_path: Path
) -> None:
    def trainer(validation: str) -> Trainer:
        return private(validation=validation, patience=None, steps=2, folder=tmp_path)

    trainer(before).fit()
    with pytest.raises(DataError, match=sentence):
        trainer(after).resume(last(tmp_path))


def test_noise_that_counts_as_none_is_refused_where_a_budget_is_made_of_it() -> None:
    growing: Any = {"batch_growth": 16, "accountant": "rdp"}
    with pytest.raises(SettingError, match=r"^noise_multiplier=0.0001: .*0\.001"):
        private(**growing, noise_multiplier=1e-4)
    with pytest.raises(SettingError, match="^validation_noise=None: .*the training alone has ε"):
        private(**growing, noise_multiplier=0.05, validation="noisy")
