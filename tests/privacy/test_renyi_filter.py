"""A Rényi filter against sums in float64 and dp-accounting, and what may be claimed by it.

Axes: none.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from scipy.special import gammaln, logsumexp

from metalearn.errors import DataError, SettingError
from metalearn.privacy import (
    AdaptiveGaussian,
    PoissonSampling,
    PrivacyAccount,
    PrivacyLedger,
    RenyiFilter,
    SampledGaussian,
    noise_multiplier_for,
    noise_multiplier_of_plan,
    privacy_spent,
    sampling_of,
)
from metalearn.privacy.mechanism import mechanism_of

library = pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")

DELTA = 1e-5


def chosen(size: int, most: int = 400, noise: float = 2.0, examples: int = 1000) -> Any:
    return AdaptiveGaussian(examples, size, most, noise)


def fixed(size: int, noise: float = 2.0, examples: int = 1000) -> Any:
    return SampledGaussian("poisson", examples, size, noise)


def at(order: float, budget: float = 1.0, steps: int = 10) -> RenyiFilter:
    return RenyiFilter(order, budget, delta=DELTA, steps=steps)


def by_binomial_sum(order: int, rate: float, noise: float) -> float:
    """Of the sampled Gaussian, in closed form (Mironov, Talwar and Zhang, 2019, section 3.3)."""
    terms = [
        gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
        + (order - k) * math.log1p(-rate) + k * math.log(rate) + (k * k - k) / (2 * noise**2)
        for k in range(order + 1)
    ]  # fmt: skip
    return float(logsumexp(terms)) / (order - 1)


@pytest.mark.parametrize("order", [2, 3, 8, 32])
@pytest.mark.parametrize("size", [10, 100, 400])
@pytest.mark.parametrize("noise", [0.8, 2.0, 9.0])
def test_divergences_at_whole_orders_are_the_binomial_sum(
    order: int, size: int, noise: float
) -> None:
    found = at(order).spent([(fixed(size, noise), 1)])
    assert found == pytest.approx(by_binomial_sum(order, size / 1000, noise), rel=1e-9)


@pytest.mark.parametrize("order", [1.5, 6.7, 20.0])
def test_steps_of_several_sizes_add_up_as_dp_accounting_has_them(order: float) -> None:
    accountant = library.rdp.RdpAccountant([order])
    steps, event = [], library.GaussianDpEvent(2.0)
    for size, count in ((50, 3), (100, 5), (400, 2)):
        accountant.compose(library.PoissonSampledDpEvent(size / 1000, event), count)
        steps.append((chosen(size), count))
    found = at(order)
    assert found.spent(steps) == pytest.approx(float(accountant.rdp[0]), rel=1e-12)
    plain = [(fixed(mechanism.batch_size), count) for mechanism, count in steps]
    assert found.spent(plain) == found.spent(steps)
    assert found.spent([(fixed(50, 0.0), 1)]) == math.inf and found.spent([]) == 0.0


def test_a_budget_of_all_examples_is_that_of_the_gaussian_mechanism() -> None:
    every = SampledGaussian("full_batch", 20, 20, 5.0)
    assert at(4.0).spent([(every, 3)]) == pytest.approx(3 * 4 / (2 * 25), rel=1e-12)


def test_a_plan_fills_its_budget_at_the_order_that_is_best_for_it() -> None:
    plan = [(fixed(100), 20), (fixed(400), 20)]
    found = RenyiFilter.of_plan(plan, DELTA)
    assert found.steps == 40 and found.spent(plan) == found.budget and found.has_room(plan)
    best = privacy_spent(plan, DELTA, "rdp").epsilon
    assert found.epsilon(plan) == pytest.approx(best, rel=1e-12)
    alpha = found.order
    shown = found.budget + math.log1p(-1 / alpha) - math.log(DELTA * alpha) / (alpha - 1)
    assert best == pytest.approx(shown, rel=1e-12)


def test_noise_of_a_plan_of_steps_that_are_alike_is_that_of_the_steps() -> None:
    rule: Any = {"delta": DELTA, "sampling": "poisson", "examples": 1000, "batch_size": 100}
    wanted = noise_multiplier_for(2.0, steps=50, accountant="rdp", **rule)
    found = noise_multiplier_of_plan(
        lambda noise: [(fixed(100, noise), 20), (fixed(100, noise), 30)], epsilon=2.0, delta=DELTA
    )
    assert found == wanted
    larger = noise_multiplier_of_plan(
        lambda noise: [(fixed(100, noise), 20), (fixed(400, noise), 30)], epsilon=2.0, delta=DELTA
    )
    budget = RenyiFilter.of_plan([(fixed(100, larger), 20), (fixed(400, larger), 30)], DELTA)
    assert larger > wanted
    assert 1.9998 < budget.epsilon([(chosen(100, noise=larger), 50)]) <= 2.0


def test_what_is_claimed_is_the_budget_and_never_what_came_about() -> None:
    found = RenyiFilter.of_plan([(fixed(100), 20), (fixed(400), 20)], DELTA)
    budget = found.epsilon([(chosen(100), 20), (chosen(400), 20)])
    few = [(chosen(100), 40)]
    assert privacy_spent([(fixed(100), 40)], DELTA, "rdp").epsilon < 0.7 * budget
    assert found.epsilon(few) == budget
    # How many steps there were may be an output as well, as where patience ended the run.
    assert privacy_spent([(fixed(400), 3)], DELTA, "rdp").epsilon < 0.7 * budget
    assert found.epsilon([(chosen(100), 3)]) == budget
    assert found.epsilon([]) == found.epsilon([(chosen(100), 0)]) == 0.0


def test_beyond_the_budget_it_is_that_of_the_largest_steps_that_may_have_been_more() -> None:
    found = RenyiFilter.of_plan([(fixed(100), 20), (fixed(400), 20)], DELTA)
    more = [(chosen(100), 22), (chosen(400), 20)]
    assert not found.has_room(more)
    largest = found.spent([(fixed(400), 1)])
    level = found.budget + 2 * largest
    alpha = found.order
    shown = level + math.log1p(-1 / alpha) - math.log(DELTA * alpha) / (alpha - 1)
    assert found.epsilon(more) == pytest.approx(shown, rel=1e-12)
    far = [(chosen(100), 30), (fixed(600), 10)]  # as many as planned, but of another setting
    shown = found.spent(far) + math.log1p(-1 / alpha) - math.log(DELTA * alpha) / (alpha - 1)
    assert found.epsilon(far) == pytest.approx(shown, rel=1e-12)


def test_steps_taken_anew_count_as_the_largest_whether_they_were_or_not() -> None:
    """How large they were was chosen; that they were more than planned was not."""
    found = RenyiFilter.of_plan([(fixed(100), 20), (fixed(400), 20)], DELTA)
    small = [(chosen(100), 42)]
    assert found.has_room(small)
    assert found.epsilon(small) == found.epsilon([(chosen(100), 22), (chosen(400), 20)])


def test_steps_after_a_change_of_settings_add_to_the_budget_whatever_was_chosen() -> None:
    """With another σ: of how many there are none was chosen, of how large each is."""
    found = RenyiFilter.of_plan([(fixed(100), 20), (fixed(400), 20)], DELTA)
    alpha = found.order
    level = found.budget + 12 * found.spent([(fixed(400, 0.9), 1)])
    wanted = level + math.log1p(-1 / alpha) - math.log(DELTA * alpha) / (alpha - 1)
    for size in (10, 100, 390):
        steps = [(chosen(size), 20), (chosen(30), 5), (chosen(size, noise=0.9), 12)]
        assert found.epsilon(steps) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_chosen_steps_compose_with_others_as_the_largest_that_could_be(accountant: Any) -> None:
    some = [(fixed(50, 3.0), 7)]
    found = privacy_spent([(chosen(10), 4), (chosen(200), 3), *some], DELTA, accountant)
    wanted = privacy_spent([(fixed(400), 7), *some], DELTA, accountant)
    assert found == wanted


def test_chosen_steps_draw_what_they_say_and_are_written_down(tmp_path: Path) -> None:
    step = chosen(50)
    assert mechanism_of(step.state()) == step
    sampling = sampling_of(step, 1000, seed=0)
    assert isinstance(sampling, PoissonSampling) and sampling.rate == 0.05
    assert sum(len(sampling.draw(t)) for t in range(200)) / 200 == pytest.approx(50, rel=0.05)
    path = tmp_path / "ledger.jsonl"
    account = PrivacyAccount(step, delta=DELTA, accountant="rdp", ledger=PrivacyLedger(path))
    account.reserve(0, 3)
    account.change(chosen(100))
    account.reserve(3)
    assert PrivacyLedger(path).composed() == [(step, 3), (chosen(100), 1)]
    with pytest.raises(DataError, match=r"this is no mechanism of private steps \(batch_size="):
        mechanism_of({**step.state(), "batch_size": 401})


def test_an_account_with_a_budget_claims_by_it_and_keeps_it() -> None:
    budget = RenyiFilter.of_plan([(fixed(100), 2), (fixed(400), 2)], DELTA)
    account = PrivacyAccount(chosen(100), delta=DELTA, accountant="rdp", budget=budget)
    account.reserve(0, 3)
    assert account.spent().epsilon == budget.epsilon([(chosen(100), 3)])
    assert account.spent().accountant == "rdp"
    assert (
        account.spent_together().epsilon == privacy_spent([(fixed(400), 3)], DELTA, "rdp").epsilon
    )
    other = RenyiFilter(3.0, 9.0, delta=DELTA, steps=9)
    again = PrivacyAccount(chosen(200), delta=DELTA, accountant="rdp", budget=other)
    again.state_kinds()[0](account.state(), "")
    again.load_state(account.state())
    assert again.budget is not None and again.budget.state() == budget.state()
    without = PrivacyAccount(chosen(200), delta=DELTA, accountant="rdp")
    with pytest.raises(SettingError, match="budget=None: a budget is needed: steps of this run"):
        without.load_state(account.state())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: at(1.0), r"order=1\.0: "),
        (lambda: at(2.0, -1.0), r"budget=-1\.0: "),
        (lambda: at(2.0, steps=0), "steps=0: a whole number of at least 1"),
        (lambda: RenyiFilter(2.0, 1.0, delta=1.0, steps=1), r"delta=1\.0: a number in \(0, 1\)"),
        (lambda: RenyiFilter.of_plan([(fixed(100), 0)], DELTA), "steps=0: a whole number"),
        (lambda: RenyiFilter.of_plan([(fixed(100, 0.0), 1)], DELTA), "plan=.*without noise"),
        (lambda: RenyiFilter.of_plan([(fixed(100), 1)], 0.0), r"delta=0\.0: "),
        (lambda: noise_multiplier_of_plan(lambda _: [], epsilon=1.0, delta=DELTA), "plan='a func"),
        (
            lambda: noise_multiplier_of_plan(lambda s: [(fixed(9, s), 1)], epsilon=0, delta=DELTA),
            "epsilon=0: a number above 0",
        ),
        (lambda: chosen(0), "batch_size=0: a whole number of at least 1"),
        (lambda: chosen(401), "batch_size=401: a whole number of at most 400"),
        (lambda: chosen(1, most=1001), "most=1001: a whole number of at most 1000"),
        (lambda: chosen(1, noise=-1.0), r"noise_multiplier=-1\.0: "),
    ],
)
def test_what_is_no_budget_and_no_step_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()
