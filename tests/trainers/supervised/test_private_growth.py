"""Private training whose batches grow where steps are mostly noise, within a fixed budget.

Axes: N samples of a batch, B expected ones, P parameters.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.auditing import audit_private_step, audit_private_training
from metalearn.errors import DataError, SettingError
from metalearn.privacy import (
    AdaptiveGaussian,
    PrivacyAccount,
    PrivacyLedger,
    SampledGaussian,
    privacy_spent,
)
from metalearn.trainers import PrivateTrainer
from metalearn.trainers.private.growing import GrowingBatch, GrowthPlan
from tests.support.builders import Recorder, assert_same
from tests.support.spreads import assert_normal_spread
from tests.trainers.supervised.test_private import SEEDED, private

DELTA = 1e-5
GROWING: Any = {
    "batch_growth": {"most": 24, "window": 2}, "accountant": "rdp", "batch_size": 4, "steps": 12,
    "noise_multiplier": 3.0, "schedule": "constant",
}  # fmt: skip


def grown(**settings: Any) -> PrivateTrainer:
    return private(**{**GROWING, **settings})


def growing(
    plan: GrowthPlan, *, first: int = 50, steps: int = 40, noise: float = 3.0, units: int = 1000
) -> GrowingBatch:
    """Over an account in memory."""
    given: Any = {"epsilon": None, "noise_multiplier": noise}
    step, budget = plan.within(units, first, steps, delta=DELTA, **given)
    account = PrivacyAccount(step, delta=DELTA, accountant="rdp", budget=budget)
    return GrowingBatch(account, plan, units, steps=steps, seed=0)


def taken(batch: GrowingBatch, step: int, gradient: Tensor) -> None:
    batch.advance(step)
    batch.account.reserve(step)
    batch.observe({"weight": gradient})


def drawn(trainer: PrivateTrainer) -> dict[int, int]:
    """Steps by the size of their batch."""
    found: dict[int, int] = {}
    for mechanism, count in trainer.account.steps():
        made: Any = getattr(mechanism, "of", mechanism)
        found[made.batch_size] = found.get(made.batch_size, 0) + count
    return found


def spent(batch: GrowingBatch) -> float:
    assert batch.account.budget is not None
    return batch.account.budget.spent(batch.account.steps())


@pytest.mark.parametrize("ratio", [0.2, 1.0, 25.0])
def test_the_estimate_is_the_variance_of_a_mean_over_its_squared_length(ratio: float) -> None:
    draws = torch.Generator().manual_seed(0)
    mean = torch.randn(200, generator=draws, dtype=torch.float64)
    scale = mean.norm() * math.sqrt(ratio / 200)
    plan = GrowthPlan(most=1000, threshold=ratio, window=6_000)
    batch = growing(plan, steps=6_001, noise=1e3)
    sizes = []
    batch.advance(0)
    for _ in range(6_000):
        noise = torch.randn(200, generator=draws, dtype=torch.float64)
        batch.observe({"a": (mean + scale * noise)[:20], "b": (mean + scale * noise)[20:]})
        sizes.append(batch.size)
    batch.advance(6_000)
    assert batch.ratio == pytest.approx(ratio, rel=0.06)
    assert set(sizes) == {50} and batch.size == (100 if batch.ratio > ratio else 50)


@pytest.mark.parametrize(("threshold", "size"), [(0.5, 100), (2.0, 50)])
def test_it_doubles_above_the_threshold_alone_and_at_the_end_of_a_window(
    threshold: float, size: int
) -> None:
    """Gradients (1, ±1) have a squared mean of 1 and a variance of 1: products 0, 2 in turn."""
    batch = growing(GrowthPlan(most=400, threshold=threshold, window=4))
    signs, seen = [1.0, 1.0, -1.0, -1.0, 1.0, 1.0], []
    for step, sign in enumerate(signs):
        taken(batch, step, torch.tensor([1.0, sign], dtype=torch.float64))
        seen.append(batch.size)
    assert seen == [50] * 4 + [size] * 2
    # Squares are 2 each, products 2, 0, 2 of three pairs.
    assert batch.ratio == pytest.approx((2 - 4 / 3) / (4 / 3), rel=1e-12)


def test_sizes_double_up_to_the_largest() -> None:
    batch = growing(GrowthPlan(most=333, window=2, share=1.0))
    seen = set()
    for step in range(40):
        taken(batch, step, torch.tensor([(-1.0) ** step]))
        seen.add(batch.size)
    assert seen == {50, 100, 200, 333} and batch.size == 333


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_the_budget_holds_whatever_is_decided_and_all_steps_are_taken(
    seed: int, share: float
) -> None:
    """Decisions at random, with kills that lose steps in between; the last seed is greedy."""
    chance = random.Random(seed)
    plan = GrowthPlan(
        most=chance.choice([100, 400, 999]), share=share, window=chance.choice([2, 3])
    )
    batch = growing(plan, steps=30)
    assert batch.account.budget is not None
    budget, step, lost = batch.account.budget, 0, 0
    state = {**batch.account.state(), **batch.state()}
    while step < 30:
        if step % 5 == 0:
            at, state = step, {**batch.account.state(), **batch.state()}
        greedy = seed == 5 or chance.random() < 0.5
        taken(batch, step, torch.tensor([(-1.0) ** step if greedy else 1.0]))
        left = 29 - step
        whole = [*batch.account.steps(), (batch.account.mechanism, left)]
        assert budget.has_room(whole) or batch.size == 50
        if lost < 2 and seed % 2 and chance.random() < 0.15:
            lost += 1
            kept = batch.account.state()["privacy"]
            batch = growing(plan, steps=30)
            batch.account.load_state({**state, "privacy": kept})
            batch.load_state(state, {"weight": torch.zeros(1)})
            step = at
            continue
        step += 1
    assert sum(count for _, count in batch.account.steps()) >= 30
    if not seed % 2:
        assert spent(batch) <= budget.budget
        assert batch.account.spent().epsilon <= budget.epsilon([(batch.account.mechanism, 30)])


def test_a_batch_that_does_not_fit_any_more_falls_back() -> None:
    batch = growing(GrowthPlan(most=400, window=2, share=0.5), steps=20)
    for step in range(17):  # the last one in the midst of a window
        taken(batch, step, torch.tensor([(-1.0) ** step]))
    assert batch.size == 400
    again = growing(GrowthPlan(most=400, window=2, share=0.5), steps=20)
    again.advance(0)  # as if it had begun before it is loaded
    state = {**batch.account.state(), **batch.state()}
    again.account.load_state(state)
    again.load_state(state, {"weight": torch.zeros(1)})
    assert again.size == 400
    again.advance(11)  # from an earlier state: six steps are taken anew
    assert again.size < 400


def test_sizes_are_those_of_batches_of_noise_and_of_the_division(tmp_path: Path) -> None:
    trainer = grown(noise_multiplier=4.0, max_norm=0.5, steps=20)
    trainer.prepare()
    objective, seen = trainer.objective, {}
    for step in range(20):
        batch = objective.batch(step)
        found = objective.gradient(trainer.params, batch, step=step)
        assert found.noise is not None and found.normalizer is not None
        zeros = {
            name: torch.zeros(8_000 // g.numel(), g.numel()) for name, g in found.grads.items()
        }
        assert trainer.growing is not None
        kept, objective.growing = objective.growing, None
        loud = found.noise(zeros, float(found.normalizer))
        objective.growing = kept
        seen[int(found.normalizer)] = torch.cat([g.flatten() for g in loud.values()])
        noisy = {n: torch.full_like(p, (-1.0) ** step) for n, p in trainer.params.items()}
        trainer.growing.observe(noisy)
        assert found.processed == objective.expected == found.normalizer
    assert len(seen) > 2 and min(seen) == 4
    for size, noise in seen.items():
        assert_normal_spread(noise, 4.0 * 0.5 / size)


def test_what_is_looked_at_is_the_gradient_with_its_noise() -> None:
    trainer = grown()
    trainer.prepare()
    batch = trainer.objective.batch(0)
    quiet = trainer.objective.gradient(trainer.params, batch, step=0)
    assert quiet.noise is not None and trainer.growing is not None
    means = {n: g * quiet.divisor / 4 for n, g in quiet.grads.items()}
    loud = [dict(quiet.noise(means, 4.0)) for _ in range(2)]
    state = trainer.growing.state()["batch_growth"]
    assert_same(state["previous"], loud[1])
    rows = [torch.cat([g.flatten().double() for g in one.values()]) for one in loud]
    assert state["products"] == pytest.approx(float(rows[0] @ rows[1]), rel=1e-6, abs=1e-9)
    assert state["squares"] == pytest.approx(float(sum(row @ row for row in rows)), rel=1e-6)
    assert (state["taken"], state["pairs"]) == (2, 1)


def test_steps_of_its_size_are_on_the_disk_before_a_batch_is_drawn(tmp_path: Path) -> None:
    trainer: Any = grown(folder=tmp_path)
    right, seen = trainer.growing, []

    class Watched:
        def draw(self, step: int) -> Tensor:
            written = dict(PrivacyLedger(tmp_path / "privacy.jsonl").composed())
            mechanism = AdaptiveGaussian(30, right.size, 24, 3.0)
            seen.append((right.size, written.get(mechanism, 0), sum(written.values()) - step))
            batch: Tensor = right.draw(step)
            return batch

    trainer.objective.batches.sampling = Watched()
    trainer.fit()
    assert len(seen) == 12 and len({size for size, _, _ in seen}) > 1
    assert all(count > 0 and ahead == 1 for _, count, ahead in seen)


def test_each_sample_is_drawn_as_often_as_its_size_says() -> None:
    batch = growing(GrowthPlan(most=200, window=2), first=100, units=400)
    for step in range(30):
        taken(batch, step, torch.tensor([(-1.0) ** step]))
    assert batch.size == 200
    counts = torch.zeros(400)
    for step in range(400):
        counts[batch.draw(step)] += 1
    assert float(counts.mean()) / 400 == pytest.approx(0.5, rel=0.02)
    assert float((counts / 400 - 0.5).abs().max()) < 5 * math.sqrt(0.25 / 400)


def test_a_batch_that_has_no_room_to_grow_is_the_plain_run() -> None:
    plain = grown(batch_growth=None, **SEEDED)
    same = grown(batch_growth={"most": 4, "window": 2}, **SEEDED)
    for trainer in (plain, same):
        trainer.fit()
    assert_same(dict(plain.params), dict(same.params))
    asked: Any = {"noise_multiplier": None, "epsilon": 2.0}
    same, plain = (
        grown(batch_growth=4, **asked),
        grown(batch_growth=None, **asked),
    )
    for trainer in (plain, same):
        trainer.fit()
    assert same.objective.noise_multiplier == plain.objective.noise_multiplier
    assert same.account.spent().epsilon == pytest.approx(plain.account.spent().epsilon, rel=1e-12)


def test_what_it_says_it_cost_is_what_the_budget_allows() -> None:
    seen = Recorder()
    trainer = grown(noise_multiplier=None, epsilon=2.0, tracker=seen, log_every=1)
    trainer.fit()
    summary, sizes = trainer.results()["privacy"], drawn(trainer)
    assert len(sizes) > 1 and sum(sizes.values()) == 12
    assert 1.99 < summary["epsilon"] <= 2.0 and summary["accountant"] == "rdp"
    budget = trainer.account.budget
    assert budget is not None and summary["order"] == budget.order
    assert {m["batch_size"]: m["steps"] for m in summary["mechanisms"]} == sizes
    sigma = summary["noise_multiplier"]
    came_about = [(SampledGaussian("poisson", 30, b, sigma), count) for b, count in sizes.items()]
    assert budget.has_room(came_about)
    assert privacy_spent(came_about, DELTA, "rdp").epsilon <= summary["epsilon"]
    epsilons = [n["privacy/epsilon"] for _, n in seen.numbers if "privacy/epsilon" in n]
    assert epsilons == sorted(epsilons) and epsilons[-1] == summary["epsilon"]
    shown = [n["privacy/batch_size"] for _, n in seen.numbers if "privacy/batch_size" in n]
    assert {size: shown.count(size) for size in set(shown)} == sizes
    assert trainer.remarks() == [f"privacy: {trainer.account.spent()}"]
    assert trainer.account.spent().epsilon == summary["epsilon"]


def test_noise_is_that_of_the_plan_and_its_share() -> None:
    asked: Any = {"noise_multiplier": None, "epsilon": 2.0}
    for share in (0.25, 1.0):
        trainer = grown(batch_growth={"most": 24, "share": share}, **asked)
        sigma, large = trainer.objective.noise_multiplier, int(12 * share)
        plan = [(SampledGaussian("poisson", 30, 4, sigma), 12 - large),
                (SampledGaussian("poisson", 30, 24, sigma), large)]  # fmt: skip
        assert 1.9998 < privacy_spent(plan, DELTA, "rdp").epsilon <= 2.0
        budget = trainer.account.budget
        assert budget is not None and budget.budget == budget.spent(plan)


def test_no_step_is_written_down_beyond_the_next_decision(tmp_path: Path) -> None:
    trainer = grown(batch_growth={"most": 24, "window": 5}, reserve=4, folder=tmp_path)
    trainer.fit()
    assert len(drawn(trainer)) > 1 and sum(drawn(trainer).values()) == 12


def test_a_resumed_run_is_the_one_that_was_not_interrupted(tmp_path: Path) -> None:
    how: Any = {**SEEDED, "batch_growth": {"most": 24, "window": 4, "threshold": 1e-6}}
    whole, part = grown(**how), grown(**how, folder=tmp_path, checkpoint_every=6)
    whole.fit()
    part.objective.batches.steps = 12
    part.loop.settings = grown(**{**how, "steps": 6}).loop.settings
    part.fit()
    again = grown(**how, folder=tmp_path)
    again.resume(tmp_path / "checkpoints" / "last.pt")
    assert again.step == 6 and again.objective.expected == 8
    again.fit()
    assert_same(dict(whole.params), dict(again.params))
    assert drawn(whole) == drawn(again) and len(drawn(whole)) > 2
    assert_same(whole.growing and whole.growing.state(), again.growing and again.growing.state())


def test_steps_taken_anew_are_spent_and_leave_less_to_grow(tmp_path: Path) -> None:
    asked: Any = {"noise_multiplier": None, "epsilon": 2.0, "folder": tmp_path}
    first = grown(**asked)
    first.fit()
    again = grown(**asked, batch_growth={"most": 24, "window": 2, "share": 0.1})
    again.resume(tmp_path / "checkpoints" / "last.pt")
    assert first.account.budget is not None and again.account.budget is not None
    assert again.account.budget.state() == first.account.budget.state()  # fixed at the start
    assert again.account.spent() == first.account.spent()
    again.loop.step = 4  # as from an earlier checkpoint
    again.fit()
    assert sum(drawn(again).values()) == 20
    assert again.account.spent().epsilon > 2.0
    assert again.remarks()[1].startswith("privacy: more than the ε of 2 that was asked for")


def test_a_run_whose_batches_grew_goes_on_with_its_budget_alone(tmp_path: Path) -> None:
    grown(folder=tmp_path, steps=4).fit()
    plain = grown(batch_growth=None, folder=tmp_path)
    with pytest.raises(DataError, match="batch_growth is None, but a largest batch, as at the"):
        plain.resume(tmp_path / "checkpoints" / "last.pt")


def test_a_run_whose_batches_stayed_may_go_on_growing(tmp_path: Path) -> None:
    grown(batch_growth=None, steps=4, folder=tmp_path).fit()
    trainer = grown(folder=tmp_path)
    trainer.resume(tmp_path / "checkpoints" / "last.pt")
    trainer.fit()
    sizes = drawn(trainer)
    assert sum(sizes.values()) == 12 and len(sizes) > 1 and sizes[4] >= 4
    budget = trainer.account.budget
    assert budget is not None and budget.has_room(trainer.account.steps())


def test_runs_that_share_its_ledger_compose_with_the_largest_steps(tmp_path: Path) -> None:
    ledger = tmp_path / "shared.jsonl"
    grown(ledger=ledger).fit()
    other = private(ledger=ledger, accountant="rdp")
    other.fit()
    largest = AdaptiveGaussian(30, 24, 24, 3.0)
    wanted = privacy_spent([(largest, 12), *other.account.steps()], DELTA, "rdp").epsilon
    assert other.results()["privacy"]["epsilon_of_ledger"] == pytest.approx(wanted, rel=1e-12)


def test_an_audit_of_its_step_leaves_it_as_it_is() -> None:
    trainer = grown(noise_multiplier=1.0)
    before = trainer.growing and trainer.growing.state()
    assert not audit_private_step(trainer, trials=200).refuted
    assert_same(trainer.growing and trainer.growing.state(), before)
    with pytest.raises(SettingError, match=r"trainer\.batch_growth=24: null is needed for a stack"):
        audit_private_training(trainer, models=16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_growth": 3}, "batch_growth=3: a whole number of at least 4"),
        ({"batch_growth": 31}, "batch_growth=31: a whole number of at most 30"),
        ({"batch_growth": {}}, r"batch_growth\.most=None: a whole number of at least 4"),
        ({"batch_growth": {"most": 8.5}}, r"batch_growth\.most=8\.5: a whole number"),
        ({"batch_growth": {"largest": 8}}, "batch_growth='largest': known are most, share"),
        ({"batch_growth": {"most": 8, "share": 1.5}}, r"batch_growth\.share=1\.5: .*\(0, 1\]"),
        ({"batch_growth": {"most": 8, "share": 0}}, r"batch_growth\.share=0: .*\(0, 1\]"),
        ({"batch_growth": {"most": 8, "threshold": 0.0}}, r"batch_growth\.threshold=0\.0: "),
        ({"batch_growth": {"most": 8, "window": 1}}, r"batch_growth\.window=1: .*at least 2"),
        ({"batch_size": 0}, "batch_size=0: a whole number of at least 1"),
        ({"accountant": "pld"}, "accountant='pld': rdp is needed where batch_growth is given"),
        ({"sampling": "shuffled"}, "sampling='shuffled': poisson is needed where batch_growth"),
        ({"noise_bands": 2}, "noise_bands=2: 1 is needed where batch_growth is given"),
        ({"clip_quantile": 0.5}, r"clip_quantile=0\.5: null is needed where batch_growth"),
        (
            {"runs": 2, "noise_multiplier": None, "epsilon": 2.0, "ledger": "shared.jsonl"},
            "runs=2: 1 is needed where batch_growth is given",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        grown(**settings)
