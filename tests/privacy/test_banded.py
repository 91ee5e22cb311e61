"""Steps with banded noise: what they are accounted for as, and whom they draw.

Axes: N examples, b bands.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.errors import DataError, SettingError
from metalearn.privacy import (
    BandedGaussian,
    PartitionedSampling,
    PoissonSampling,
    PrivacyAccount,
    PrivacyLedger,
    SampledGaussian,
    banded_strategy,
    noise_multiplier_for,
    prefix_error,
    privacy_spent,
    sampling_of,
    steps_for,
)
from metalearn.privacy.mechanism import SeededNoise, drawn_gaussian, mechanism_of
from tests.privacy.test_sampling import check_apart, drawn
from tests.privacy.test_strategies import dense

FOUR = BandedGaussian(1000, 50, 4, 1.5)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
@pytest.mark.parametrize("steps", [1, 4, 5, 99, 100])
def test_it_is_a_sampled_gaussian_for_each_turn(accountant: Any, steps: int) -> None:
    """⌈n/b⌉ of dp-accounting's, each drawn with b·B/N."""
    library = pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")
    made = library.rdp.RdpAccountant() if accountant == "rdp" else library.pld.PLDAccountant()
    event = library.PoissonSampledDpEvent(0.2, library.GaussianDpEvent(1.5))
    made.compose(event, math.ceil(steps / 4))
    spent = privacy_spent([(FOUR, steps)], 1e-5, accountant)
    assert spent.epsilon == pytest.approx(made.get_epsilon(1e-5), rel=1e-4)
    assert spent.neighbours == "add_or_remove_one"


def test_the_figures_of_the_documentation() -> None:
    """σ·error for ε = 3: 21.2 by one band, 11.2 by sixteen."""
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")
    for bands, sigma, left in ((1, 0.672, 21.2), (16, 1.316, 11.2)):
        mechanism = BandedGaussian(60_000, 240, bands, sigma)
        assert privacy_spent([(mechanism, 2000)], 1e-5).epsilon == pytest.approx(3.0, rel=3e-3)
        error = prefix_error(banded_strategy(2000, bands), 2000)
        assert sigma * error == pytest.approx(left, abs=0.06)


def test_one_band_costs_what_dp_sgd_costs() -> None:
    one = BandedGaussian(1000, 50, 1, 1.5)
    usual = SampledGaussian("poisson", 1000, 50, 1.5)
    assert one.events(70) == usual.events(70)
    assert privacy_spent([(one, 70)], 1e-5) == privacy_spent([(usual, 70)], 1e-5)
    together = privacy_spent([(one, 30), (usual, 40)], 1e-5)
    assert together == privacy_spent([(usual, 70)], 1e-5)


def test_no_example_has_more_turns_in_a_series_than_are_counted() -> None:
    """Of n steps in a row that begin anywhere, those whose part is an example's."""
    for first, count, bands in itertools.product(range(7), range(12), (1, 2, 3, 5)):
        mechanism = BandedGaussian(100, 10, bands, 1.0)
        turns = [sum(t % bands == p for t in range(first, first + count)) for p in range(bands)]
        counted = mechanism.counted(first, count)
        [(_, times)] = mechanism.events(counted)
        assert max(turns) == times and times * bands == counted


def test_columns_that_an_example_meets_have_no_row_in_common() -> None:
    """What the theorem rests on: turns are b apart, and the columns of S orthogonal there."""
    strategy = banded_strategy(23, 5)
    matrix = dense(strategy, 23)
    for part in range(5):
        columns = matrix[:, part::5]
        gram = columns.T @ columns
        assert torch.equal(gram, torch.diag(gram.diagonal()))
        assert gram.diagonal().max() <= 1 + 1e-12


@pytest.mark.parametrize("seed", [0, None])
def test_turns_are_b_apart_and_each_is_taken_with_its_chance(seed: int | None) -> None:
    population, parts, rate, turns = 240, 3, 0.15, 800
    sampling = PartitionedSampling(population, rate, parts, seed=seed)
    included = drawn(sampling, parts * turns, population)
    turn = included.view(turns, parts, population).sum(0)  # [b, N]
    assert ((turn > 0).sum(0) <= 1).all()
    spread = math.sqrt(rate * (1 - rate) / turns)
    assert (turn.sum(0) / turns - rate).abs().max() < 6.5 * spread
    own = turn.argmax(0).bincount(minlength=parts)
    assert (own - population / parts).abs().max() < 7 * math.sqrt(population * 2 / 9)
    check_apart(torch.corrcoef(included.view(turns, parts, population).sum(1).T), turns, rate)


def test_parts_are_independent_of_each_other_and_of_the_object() -> None:
    """Each of three examples in one of two parts: eight ways, as often as each other."""
    counts = torch.zeros(8)
    for _ in range(1600):
        sampling = PartitionedSampling(3, 1.0, 2)
        first, second = sampling.draw(0).tolist(), sampling.draw(1).tolist()
        assert sorted(first + second) == [0, 1, 2]
        assert sampling.draw(4).tolist() == first
        counts[sum(2**i for i in first)] += 1
    assert ((counts - 200).square() / 200).sum() < 7 + 7 * math.sqrt(14) + 7


def test_one_part_is_poisson_sampling_and_a_seed_repeats() -> None:
    one, usual = PartitionedSampling(300, 0.2, 1, seed=4), PoissonSampling(300, 0.2, seed=4)
    assert all(torch.equal(one.draw(t), usual.draw(t)) for t in range(20))
    own = torch.tensor([40, 10, 30, 20])
    first, again = (PartitionedSampling(own, 0.5, 2, seed=1) for _ in range(2))
    for step in range(20):
        assert torch.equal(first.draw(step), again.draw(step))
        assert set(first.draw(step).tolist()) <= {10, 20, 30, 40}
    many = PartitionedSampling(2, 1.0, 50, seed=0)
    assert sum(len(many.draw(step)) for step in range(50)) == 2


def test_a_mechanism_gets_its_batches() -> None:
    sampling = sampling_of(FOUR, 1000, seed=0)
    assert isinstance(sampling, PartitionedSampling)
    sizes = [len(sampling.draw(step)) for step in range(400)]
    assert sum(sizes) / 400 == pytest.approx(50, abs=1.5)
    with pytest.raises(SettingError, match="examples=999: the mechanism accounts for 1000"):
        sampling_of(FOUR, 999)


@pytest.mark.parametrize("bands", [2, 5])
def test_noise_and_steps_for_an_epsilon(bands: int) -> None:
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")
    given: dict[str, Any] = {"sampling": "poisson", "examples": 3000, "batch_size": 60}
    rule: dict[str, Any] = {"delta": 1e-5, "accountant": "rdp"}
    noise = noise_multiplier_for(2.0, steps=203, bands=bands, **given, **rule)
    mechanism = BandedGaussian(3000, 60, bands, noise)
    assert 2.0 * (1 - 1.01e-4) <= privacy_spent([(mechanism, 203)], **rule).epsilon <= 2.0
    most = steps_for(2.0, mechanism=mechanism, **rule)
    assert most == math.ceil(203 / bands) * bands
    usual = noise_multiplier_for(2.0, steps=203, **given, **rule)
    assert noise_multiplier_for(2.0, steps=203, bands=1, **given, **rule) == usual < noise


def test_series_of_a_ledger_count_by_themselves(tmp_path: Path) -> None:
    """Four bands: six steps are two turns; each interruption begins a series."""
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")
    rule: dict[str, Any] = {"delta": 1e-5, "accountant": "rdp"}
    path = tmp_path / "privacy.jsonl"
    account = PrivacyAccount(FOUR, ledger=PrivacyLedger(path), **rule)
    for step in range(6):
        account.reserve(step)
    assert account.steps() == [(FOUR, 8)]
    resumed = PrivacyAccount(FOUR, ledger=PrivacyLedger(path), run=account.run, **rule)
    resumed.load_state(account.state())
    for step in range(6, 11):
        resumed.reserve(step)
    assert resumed.steps() == [(FOUR, 8 + 8)]
    resumed.reserve(9)  # taken anew
    resumed.reserve(10)
    assert resumed.steps() == [(FOUR, 8 + 8 + 4)]
    wanted = privacy_spent([(FOUR, 20)], **rule)
    assert resumed.spent() == wanted
    assert wanted.epsilon > privacy_spent([(FOUR, 13)], **rule).epsilon
    elsewhere = PrivacyAccount(FOUR, **rule)
    elsewhere.load_state(resumed.state())
    assert elsewhere.spent() == wanted


def test_states_are_plain_and_come_back() -> None:
    for mechanism in (FOUR, BandedGaussian(7, 7, 1, 0), SeededNoise(FOUR)):
        assert mechanism_of(mechanism.state()) == mechanism
    assert SeededNoise(FOUR).counted(3, 5) == 8
    bad: list[tuple[dict[str, Any], str]] = [
        ({**FOUR.state(), "bands": 0}, "the mechanism.bands is 0"),
        ({**FOUR.state(), "bands": 21}, "batch_size=50: of 1000 examples, 21 parts have room"),
        (
            {**FOUR.state(), "sampling": "shuffled"},
            "the mechanism.sampling is 'shuffled', but one",
        ),
        ({**FOUR.state(), "q": 0.2}, "the mechanism.q is 0.2, but no such entry"),
        ({**FOUR.state(), "noise_multiplier": math.nan}, "the mechanism.noise_multiplier is nan"),
    ]
    for state, said in bad:
        with pytest.raises(DataError, match=f"this is no mechanism of private steps .{said}"):
            mechanism_of(state)


def test_bad_input_is_refused() -> None:
    cases: list[tuple[Any, str]] = [
        (lambda: BandedGaussian(10, 3, 4, 1.0), "batch_size=3: .* batches of at most 2"),
        (lambda: BandedGaussian(10, 1, 0, 1.0), "bands=0: "),
        (lambda: BandedGaussian(0, 1, 1, 1.0), "examples=0: "),
        (lambda: BandedGaussian(10, 0, 1, 1.0), "batch_size=0: "),
        (lambda: BandedGaussian(10, 1, 1, -1.0), "noise_multiplier=-1.0: "),
        (lambda: drawn_gaussian("shuffled", 10, 1, 1.0, bands=2), "sampling='shuffled': poisson"),
        (lambda: drawn_gaussian("poisson", 10, 1, 1.0, bands=0), "bands=0: "),
        (lambda: PartitionedSampling(5, 0.5, 0), "parts=0: "),
        (lambda: PartitionedSampling(5, 0.0, 2), r"rate=0.0: a number in \(0, 1\]"),
        (lambda: PartitionedSampling(5, 1.5, 2), r"rate=1.5: a number in \(0, 1\]"),
        (lambda: PartitionedSampling(5, 0.5, 2, seed=-1), "seed=-1"),
        (lambda: PartitionedSampling(5, 0.5, 2).draw(-1), "step=-1"),
    ]
    for call, said in cases:
        with pytest.raises(SettingError, match=said):
            call()
