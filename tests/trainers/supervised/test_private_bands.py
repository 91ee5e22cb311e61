"""Private training with banded noise: whom a step draws, what it adds, what going on costs.

Axes: N samples of the training part, b bands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.auditing import audit_private_step, audit_private_training
from metalearn.errors import SettingError
from metalearn.privacy import (
    BandedGaussian,
    CorrelatedNoise,
    PrivacyLedger,
    add_gaussian_noise,
    banded_strategy,
    privacy_spent,
)
from metalearn.trainers import PrivateTrainer
from tests.privacy.test_strategies import dense
from tests.support.builders import assert_same
from tests.support.spreads import assert_normal_spread
from tests.trainers.supervised.test_private import SEEDED, noiseless, private

pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
BANDS: Any = {"noise_bands": 3, "batch_size": 5, "steps": 10}


def noise_of(trainer: PrivateTrainer, steps: range) -> Tensor:
    """``[n, P]``: what the steps of a trainer get, in units of σ·C/B."""
    trainer.prepare()
    zeros = {n: torch.zeros(p.shape, dtype=torch.float64) for n, p in trainer.params.items()}
    found = []
    for step in steps:
        loud = trainer.objective.noisy(zeros, 5.0, step=step)
        found.append(torch.cat([part.flatten() for part in loud.values()]))
    return torch.stack(found) * 5 / (trainer.objective.noise_multiplier * 1.0)


def test_the_strategy_takes_the_correlation_off() -> None:
    trainer = private(**BANDS, **SEEDED, max_norm=1.0, noise_multiplier=2.5)
    found = dense(banded_strategy(10, 3), 10) @ noise_of(trainer, range(10))
    for step in range(10):
        zeros = torch.zeros(found.shape[1], dtype=torch.float64)
        drawn = add_gaussian_noise(zeros, 1.0, generator=trainer.objective._noise_of(step))
        torch.testing.assert_close(found[step], drawn, rtol=0, atol=1e-12)


def test_one_band_is_dp_sgd_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before there were bands: independent noise by `add_gaussian_noise`."""
    one = private(**SEEDED, noise_bands=1)
    one.fit()
    usual = private(**SEEDED)

    def independent(grads: Any, normalizer: float, *, step: int) -> Any:
        generator = usual.objective._noise_of(step)
        return add_gaussian_noise(dict(grads), 1.0 / normalizer, generator=generator)

    monkeypatch.setattr(usual.objective, "noisy", independent)
    usual.fit()
    assert_same(dict(one.params), dict(usual.params))
    loud, quiet = private(noise_bands=1), private()
    for trainer in (loud, quiet):
        trainer.fit()
    assert loud.account.spent() == quiet.account.spent()
    assert loud.mechanism == quiet.mechanism


def test_no_sample_takes_part_in_steps_less_than_b_apart() -> None:
    trainer = private(**{**BANDS, "steps": 200})
    train = trainer.data.splits["train"]
    taken: dict[int, list[int]] = {int(i): [] for i in train}
    for step in range(200):
        inputs = trainer.objective.batch(step)[0]
        for row in inputs:
            [place] = (trainer.data.inputs[train] == row).all(1).nonzero().flatten().tolist()
            taken[int(train[place])].append(step)
    assert all(len({step % 3 for step in steps}) <= 1 for steps in taken.values())
    assert sum(map(len, taken.values())) == pytest.approx(200 * 5, rel=0.2)
    batch, found = noiseless(trainer, 3)
    assert len(batch[1]) <= 30 and all(bool(g.isfinite().all()) for g in found.values())


@pytest.mark.parametrize("epsilon", [None, 2.0])
def test_it_costs_what_the_accountant_says_of_its_turns(epsilon: float | None) -> None:
    sigma = 1.0 if epsilon is None else None
    trainer = private(**BANDS, epsilon=epsilon, noise_multiplier=sigma)
    trainer.fit()
    summary = trainer.results()["privacy"]
    mechanism = BandedGaussian(30, 5, 3, summary["noise_multiplier"])
    assert trainer.mechanism == mechanism and summary["bands"] == 3
    assert summary["sampling"] == "poisson" and summary["batch_size"] == 5
    assert summary["epsilon"] == privacy_spent([(mechanism, 10)], 1e-5).epsilon
    assert summary["steps"] == 12  # four turns of three
    if epsilon is not None:
        assert 1.95 < summary["epsilon"] <= 2.0
        assert len(trainer.remarks()) == 1


def test_going_on_begins_a_series_and_pays_for_it(tmp_path: Path) -> None:
    first = private(**BANDS, folder=tmp_path, checkpoint_every=2)
    first.fit()
    assert first.results()["privacy"]["steps"] == 12
    second = private(**{**BANDS, "steps": 14}, folder=tmp_path)
    second.resume(tmp_path / "checkpoints" / "last.pt")
    assert second.results()["privacy"]["steps"] == 12
    second.fit()  # steps 10 to 13: another two turns, in a series of its own
    assert second.results()["privacy"]["steps"] == 12 + 6
    again = private(**{**BANDS, "steps": 14}, folder=tmp_path)
    again.resume(tmp_path / "checkpoints" / "last.pt")
    again.loop.step = 13  # as from an earlier checkpoint
    again.fit()
    [(mechanism, count)] = PrivacyLedger(tmp_path / "privacy.jsonl").composed()
    assert (mechanism, count) == (again.mechanism, 12 + 6 + 3)
    wanted = privacy_spent([(BandedGaussian(30, 5, 3, 1.0), 21)], 1e-5).epsilon
    assert again.account.spent().epsilon == wanted


def test_noise_after_an_interruption_knows_nothing_of_that_before() -> None:
    """The first step of a series has the row of a first step: z/c₀, whatever was drawn before."""
    trainer = private(**BANDS, max_norm=1.0)
    expected = 1 / float(banded_strategy(10, 3)[0])
    before, after = [], []
    for _ in range(60):
        rows = noise_of(trainer, range(4))
        [row] = noise_of(trainer, range(7, 8))
        before.append(rows[3])
        after.append(row)
    old, new = torch.cat(before), torch.cat(after)
    assert_normal_spread(new, expected)
    assert abs(float((old * new).mean() / (old.std() * new.std()))) < 6 / len(new) ** 0.5


def test_checkpoints_have_no_noise(tmp_path: Path) -> None:
    """What is saved of a run has the entries and the sizes of one without earlier noise."""

    def shapes(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: shapes(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [shapes(part) for part in value]
        return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__

    saved = []
    for bands in (1, 3):
        given = {**BANDS, "noise_bands": bands, "folder": tmp_path / str(bands)}
        trainer = private(**given)
        trainer.fit()
        assert_no_past(trainer.objective.state(), trainer)
        path = tmp_path / str(bands) / "checkpoints" / "last.pt"
        saved.append(shapes(torch.load(path, weights_only=True)))
        del saved[-1]["extra"]["privacy"]["steps"]  # of other mechanisms
        assert not list(path.parent.parent.rglob("*noise*"))
    assert saved[0] == saved[1]


def assert_no_past(state: dict[str, Any], trainer: PrivateTrainer) -> None:
    assert set(state) == {"plan", "privacy"}
    assert set(state["privacy"]) == {"run", "steps"}
    assert not any(isinstance(v, Tensor) for v in state["privacy"].values())


def test_a_seeded_run_that_was_interrupted_is_one_that_was_not(tmp_path: Path) -> None:
    whole = private(**BANDS, **SEEDED)
    whole.fit()
    half = private(**{**BANDS, "steps": 7}, **SEEDED, schedule="constant", folder=tmp_path)
    half.noise.strategy = whole.noise.strategy  # a training of ten steps, stopped after seven
    half.fit()
    resumed = private(**BANDS, **SEEDED, schedule="constant", folder=tmp_path)
    resumed.resume(tmp_path / "checkpoints" / "last.pt")
    resumed.fit()
    straight = private(**BANDS, **SEEDED, schedule="constant")
    straight.fit()
    assert_same(dict(resumed.params), dict(straight.params))
    assert resumed.results()["privacy"]["epsilon"] is None


def test_an_audit_comes_as_near_as_for_independent_noise() -> None:
    trainer = private(**{**BANDS, "noise_bands": 2}, max_norm=1.0, noise_multiplier=0.4)
    found = audit_private_step(trainer, trials=300, confidence=1 - 1e-6)
    assert not found.refuted
    assert found.bounds["one step"].mu > 0.4  # of 2.5
    with pytest.raises(SettingError, match="noise='seeded': secure is needed with noise_bands=3"):
        audit_private_step(private(**BANDS, **SEEDED), trials=8)


def test_an_audit_finds_too_little_correlated_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = private(**{**BANDS, "noise_bands": 2}, max_norm=1.0, noise_multiplier=1.0)
    right = CorrelatedNoise.add

    def half(self: Any, sums: Any, std: float, **given: Any) -> Any:
        return right(self, sums, std / 2, **given)

    monkeypatch.setattr(CorrelatedNoise, "add", half)
    found = audit_private_step(trainer, trials=400)
    assert found.refuted and found.lower_bound > 1.2 * found.claimed


def test_trainings_as_a_stack_are_audited() -> None:
    trainer = private(**{**BANDS, "steps": 4})
    found = audit_private_training(trainer, models=16, models_at_once=4)
    assert not found.refuted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_bands": 0}, "noise_bands=0: "),
        ({"noise_bands": 7, "steps": 6, "batch_size": 2}, "noise_bands=7: a whole number of at m"),
        ({"noise_bands": 4}, "noise_bands=4: at most 3 is accepted: so many parts of 30 have ro"),
        ({"noise_bands": 2, "sampling": "shuffled"}, "noise_bands=2: 1 is needed with sampling=s"),
        ({"noise_bands": 2, "sampling": "fixed_size", "accountant": "rdp"}, "noise_bands=2: 1 is"),
        ({"noise_bands": 1.5}, "noise_bands=1.5: "),
    ],
)
def test_bands_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        private(**settings)
