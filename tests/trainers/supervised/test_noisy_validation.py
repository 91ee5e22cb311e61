"""A private validation split: what a noisy score is, what it costs, and what chooses by it.

Axes: V samples of the validation split.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from metalearn.data import ClassificationData, RegressionData
from metalearn.errors import SettingError
from metalearn.models import MLP
from metalearn.privacy import PrivacyLedger, Sampling, privacy_spent
from metalearn.trainers import PrivateTrainer
from tests.support.builders import Recorder, assert_same
from tests.support.diagnostic_cases import COMMON, blobs
from tests.support.spreads import assert_normal_spread

pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
SEEDED: Any = {"noise": "seeded"}


def private(data: Any = None, **settings: Any) -> PrivateTrainer:
    given: Any = {**COMMON, "batch_size": 8, "noise_multiplier": 1.0, "clip": None, "reserve": 1}
    given |= {"validation": "noisy", "delta": 1e-3, **settings}
    model = MLP((4,), 3, hidden=(5,), activation="tanh")
    return PrivateTrainer(model, blobs() if data is None else data, **given)


def accuracy(trainer: PrivateTrainer) -> float:
    found: Any = trainer.test(split="validation")
    return float(found.report.members.accuracy[0])


def delta_of_gaussian(epsilon: float, mu: float) -> float:
    """δ of a Gaussian mechanism whose sum moves by μ standard deviations."""

    def below(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    shifted = below(-mu / 2 - epsilon / mu)
    return below(mu / 2 - epsilon / mu) - math.exp(epsilon) * shifted


def test_a_score_is_the_accuracy_where_noise_is_small() -> None:
    trainer = private(validation_noise=1e-6, noise_multiplier=0.1)
    trainer.fit()
    assert trainer.validate()["validation/accuracy"] == pytest.approx(accuracy(trainer), abs=1e-6)


@pytest.mark.parametrize("sampling", get_args(Sampling)[:3])
def test_noise_is_half_of_the_multiplier_on_the_number_of_right_answers(sampling: Any) -> None:
    trainer = private(validation_noise=6.0, sampling=sampling, accountant="rdp")
    assert trainer.noisy is not None
    count = trainer.data.size("validation")
    exact = accuracy(trainer)
    drawn = [trainer.validate()["validation/accuracy"] for _ in range(500)]
    assert_normal_spread([count * (share - exact) for share in drawn], 3.0)
    assert trainer.noisy.account.steps() == [(trainer.noisy.account.mechanism, 500)]


def test_all_scores_of_a_run_cost_what_its_steps_do() -> None:
    """ε of σ and of the number of scores is that of one Gaussian mechanism, in closed form."""
    trainer = private(epsilon=2.0, noise_multiplier=None)
    trainer.fit()
    assert trainer.noisy is not None
    scores, mechanism = 1 + -(-trainer.settings.steps // trainer.settings.eval_every), None
    [(mechanism, counted)] = trainer.noisy.account.steps()
    assert counted == scores
    spent = trainer.noisy.account.spent()
    assert 0.999 * 2 < spent.epsilon <= 2
    sigma: float = mechanism.noise_multiplier  # type: ignore[attr-defined]
    mu = math.sqrt(scores) / sigma
    assert delta_of_gaussian(spent.epsilon, mu) == pytest.approx(1e-3, rel=1e-6)


def test_without_an_epsilon_scores_cost_what_the_multiplier_makes_steps_cost() -> None:
    trainer = private()
    assert trainer.noisy is not None
    steps = [(trainer.mechanism, trainer.settings.steps)]
    asked = privacy_spent(steps, 1e-3).epsilon
    trainer.fit()
    assert 0.999 * asked < trainer.noisy.account.spent().epsilon <= asked


def test_a_score_is_written_down_before_the_split_is_read(tmp_path: Path) -> None:
    trainer = private(folder=tmp_path)
    known = PrivacyLedger(tmp_path / "privacy.validation.jsonl")
    seen = []
    right = trainer.training.right

    def watched(split: Any) -> torch.Tensor:
        seen.append(sum(count for _, count in known.composed()))
        return right(split)

    assert trainer.noisy is not None
    trainer.noisy._right = lambda: watched("validation")
    trainer.fit()
    assert seen == list(range(1, len(seen) + 1)) and len(seen) > 2


def test_the_best_state_is_that_of_the_highest_noisy_score(tmp_path: Path) -> None:
    seen = Recorder()
    trainer = private(validation_noise=4.0, tracker=seen, folder=tmp_path)
    found = trainer.fit()
    scores = {step: numbers["validation/accuracy"] for step, numbers in seen.numbers
              if "validation/accuracy" in numbers}  # fmt: skip
    assert found.best_name == "validation/accuracy"
    assert found.best_step == max(scores, key=lambda step: scores[step])
    told = [numbers["privacy/validation_epsilon"] for _, numbers in seen.numbers
            if "privacy/validation_epsilon" in numbers]  # fmt: skip
    assert told == sorted(told) and len(set(told)) == len(scores)
    names = {name for _, numbers in seen.numbers for name in numbers}
    assert {n for n in names if n.startswith("validation/")} == {"validation/accuracy"}
    assert trainer.test().temperature is None  # type: ignore[union-attr]


def test_a_resumed_run_is_the_same_and_forgets_no_score(tmp_path: Path) -> None:
    part = private(folder=tmp_path / "part", **SEEDED, steps=3, schedule="constant")
    rest = private(folder=tmp_path / "part", **SEEDED, schedule="constant")
    same = private(folder=tmp_path / "same", **SEEDED, schedule="constant")
    part.fit(), same.fit()
    rest.resume(tmp_path / "part" / "checkpoints" / "last.pt")
    rest.fit()
    assert_same(rest.params, same.params)
    secure = private(folder=tmp_path / "secure", steps=3)
    secure.fit()
    assert secure.noisy is not None
    before = secure.noisy.account.steps()
    again = private(folder=tmp_path / "other", steps=3, validation_noise=9.0)
    again.resume(tmp_path / "secure" / "checkpoints" / "last.pt")
    assert again.noisy is not None and again.noisy.account.steps() == before
    again.validate()
    assert len(again.noisy.account.steps()) == 2


def test_runs_that_share_a_ledger_share_that_of_scores(tmp_path: Path) -> None:
    shared: Any = {"ledger": tmp_path / "of_both.jsonl", "runs": 2, "epsilon": 3.0}
    shared |= {"noise_multiplier": None}
    for _ in range(2):
        trainer = private(**shared)
        trainer.fit()
    told = trainer.results()["privacy"]["validation"]
    assert told["ledger"] == str(tmp_path / "of_both.validation.jsonl")
    assert told["epsilon"] < 0.999 * 3 < told["epsilon_of_ledger"] <= 3


def test_results_and_remarks_say_what_scores_have_cost() -> None:
    trainer = private(epsilon=2.0, noise_multiplier=None)
    trainer.fit()
    told = json.loads(json.dumps(trainer.results()))["privacy"]["validation"]
    assert told["samples"] == trainer.data.size("validation")
    assert told["standard_deviation"] == told["noise_multiplier"] / 2 / told["samples"]
    assert len(trainer.remarks()) == 2
    trainer.validate()
    _, said, more = trainer.remarks()
    assert said.startswith("privacy of validation samples: ε = ")
    assert "more than the ε of 2 that was asked for" in more
    seeded = private(epsilon=2.0, noise_multiplier=None, **SEEDED)
    seeded.fit()
    assert seeded.results()["privacy"]["validation"]["epsilon"] is None
    assert len(seeded.remarks()) == 1


def test_seeded_noise_is_the_same_each_time_and_other_at_each_step() -> None:
    trainer = private(**SEEDED, validation_noise=5.0)
    evaluator = trainer.training.evaluator
    one, again, other = (evaluator(step).numbers["validation/accuracy"] for step in (0, 0, 1))
    assert one == again != other


def test_what_noisy_scores_cannot_be_had_of_is_refused() -> None:
    inputs, places = torch.randn(30, 4), torch.arange(30)
    parts: Any = {"train": places[:20], "validation": places[20:25], "test": places[25:]}
    real = RegressionData(inputs, torch.randn(30, 1), parts)
    with pytest.raises(SettingError, match="validation='noisy': none or public is needed: real"):
        private(real)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"monitor": "loss"}, "monitor='loss': accuracy is needed with validation=noisy"),
        ({"validation_noise": 0.0}, "validation_noise=0"),
        ({"validation_noise": math.nan}, "validation_noise=nan"),
        ({"validation": "public", "validation_noise": 1.0}, "null is needed with validation=publ"),
        ({"validation": "none", "validation_noise": 1.0}, "null is needed with validation=none"),
        ({"noise_multiplier": 0.05}, "validation_noise=None: a number above 0 is needed, as the"),
    ]
    for settings, message in cases:
        with pytest.raises(SettingError, match=message):
            private(**settings)
    known = blobs()
    few: Any = {"train": places[:10], "validation": places[10:29], "test": places[29:]}
    wide = ClassificationData(known.inputs, known.targets, known.class_names, few)
    with pytest.raises(SettingError, match="delta=0.06: a number below 1/V = 0.053 is needed"):
        private(wide, delta=0.06)


def test_remarks_tell_what_the_scores_of_all_runs_of_a_ledger_have_cost(tmp_path: Path) -> None:
    """Each of two runs keeps to ε, and is not said to share it: together they are above it."""
    settings: Any = {"epsilon": 2.0, "noise_multiplier": None, "ledger": tmp_path / "l.jsonl"}
    for number in range(2):
        trainer = private(**settings, folder=tmp_path / str(number))
        trainer.fit()
    alone, together, more = [line for line in trainer.remarks() if "validation" in line]
    assert "of all 2 runs of" in together and "of all" not in alone
    assert "more than the ε of 2 that was asked for" in more and "trainer.runs" in more
