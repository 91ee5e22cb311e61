"""ε against dp-accounting called directly, opacus and closed forms; σ and steps for an ε."""

from __future__ import annotations

import itertools
import logging
import math
import sys
import threading
import warnings
from typing import Any

import pytest
from scipy import optimize
from scipy.stats import norm

from metalearn.errors import DataError, SettingError
from metalearn.privacy import (
    Accountant,
    SampledGaussian,
    Sampling,
    noise_multiplier_for,
    privacy_spent,
    steps_for,
)
from metalearn.privacy.accountants import rdp_epsilon
from metalearn.privacy.events import GaussianEvent
from metalearn.privacy.mechanism import SeededNoise, mechanism_of

library = pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")

MNIST = SampledGaussian("poisson", 60000, 240, 1.3)
OTHER = SampledGaussian("poisson", 60000, 600, 2.5)
BOTH: list[Accountant] = ["rdp", "pld"]


def directly(accountant: Accountant, *events: tuple[Any, int], delta: float = 1e-5) -> float:
    """ε by dp-accounting, composed one by one."""
    made = library.rdp.RdpAccountant() if accountant == "rdp" else library.pld.PLDAccountant()
    for event, count in events:
        made.compose(event, count)
    return float(made.get_epsilon(delta))


def poisson(rate: float, noise: float) -> Any:
    return library.PoissonSampledDpEvent(rate, library.GaussianDpEvent(noise))


def gaussian_delta(epsilon: float, noise: float) -> float:
    """δ of one Gaussian mechanism in closed form (Balle and Wang, ICML 2018)."""
    right = norm.cdf(0.5 / noise - epsilon * noise)
    return float(right - math.exp(epsilon) * norm.cdf(-0.5 / noise - epsilon * noise))


def gaussian_epsilon(noise: float, delta: float) -> float:
    return float(optimize.brentq(lambda e: gaussian_delta(e, noise) - delta, 0, 100, xtol=1e-12))


def test_the_figures_of_the_documentation() -> None:
    spent = privacy_spent([(MNIST, 3750)], 1e-5, "rdp")
    assert spent.epsilon == pytest.approx(0.9220, abs=1e-4)
    assert (spent.delta, spent.neighbours) == (1e-5, "add_or_remove_one")
    tighter = privacy_spent([(MNIST, 3750)], 1e-5)
    assert tighter.accountant == "pld"
    assert 0.80 < tighter.epsilon < 0.85
    assert str(spent) == "ε = 0.922 at δ = 1e-05 (rdp, add or remove one)"


def test_rdp_is_that_of_opacus() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accountants = pytest.importorskip("opacus.accountants", reason="opacus is not installed")
        theirs = accountants.RDPAccountant()
        for _ in range(2):
            for _ in range(1875):
                theirs.step(noise_multiplier=1.3, sample_rate=240 / 60000)
        one = theirs.get_epsilon(1e-5)
        for _ in range(100):
            theirs.step(noise_multiplier=2.5, sample_rate=0.01)
        two = theirs.get_epsilon(1e-5)
    assert one == pytest.approx(0.922, abs=5e-4)
    # other orders: opacus has none between 11 and 12, 63 and 128
    assert privacy_spent([(MNIST, 3750)], 1e-5, "rdp").epsilon == pytest.approx(one, rel=1e-3)
    both = privacy_spent([(MNIST, 3750), (OTHER, 100)], 1e-5, "rdp")
    assert both.epsilon == pytest.approx(two, rel=1e-3)


@pytest.mark.parametrize("accountant", BOTH)
def test_it_is_that_of_dp_accounting(accountant: Accountant) -> None:
    one, other = (poisson(0.004, 1.3), 700), (poisson(0.01, 2.5), 90)
    ours = privacy_spent([(MNIST, 700), (OTHER, 90)], 1e-5, accountant).epsilon
    assert ours == pytest.approx(directly(accountant, one, other), rel=1e-6)


def test_a_coarser_grid_is_hardly_looser() -> None:
    little = SampledGaussian("poisson", 1000, 20, 1.0)
    ours = privacy_spent([(little, 50)], 1e-5).epsilon
    assert ours == pytest.approx(directly("pld", (poisson(0.02, 1.0), 50)), rel=1e-4)


@pytest.mark.parametrize("accountant", BOTH)
def test_composition_is_one_whatever_the_order_and_the_pieces(accountant: Accountant) -> None:
    steps = [(MNIST, 300), (OTHER, 70), (MNIST, 200), (OTHER, 0)]
    orders = list(itertools.permutations(steps))[::7]
    found = {privacy_spent(order, 1e-5, accountant) for order in orders}
    assert len(found) == 1
    assert found == {privacy_spent([(MNIST, 500), (OTHER, 70)], 1e-5, accountant)}
    alone = [privacy_spent([row], 1e-5, accountant).epsilon for row in steps[:2]]
    assert max(alone) < found.pop().epsilon < sum(alone)


def test_full_batches_are_gaussian_mechanisms() -> None:
    """k of them with noise σ are one with σ/√k, whose δ is known in closed form."""
    for noise, count in ((2.0, 1), (20.0, 9)):
        whole = SampledGaussian("full_batch", 50, 50, noise)
        exact = gaussian_epsilon(noise / math.sqrt(count), 1e-5)
        assert privacy_spent([(whole, count)], 1e-5).epsilon == pytest.approx(exact, rel=1e-3)
        assert privacy_spent([(whole, count)], 1e-5).epsilon >= exact * (1 - 1e-9)
        all_drawn = SampledGaussian("poisson", 50, 50, noise)
        assert privacy_spent([(all_drawn, count)], 1e-5) == privacy_spent([(whole, count)], 1e-5)


def test_shuffled_batches_count_epochs() -> None:
    """100 examples in batches of 30: three steps touch each example at most once."""
    shuffled = SampledGaussian("shuffled", 100, 30, 5.0)
    assert shuffled.steps_per_epoch == 3
    for steps, epochs in ((1, 1), (3, 1), (4, 2), (6, 2), (7, 3)):
        spent = privacy_spent([(shuffled, steps)], 1e-5)
        exact = gaussian_epsilon(5.0 / math.sqrt(epochs), 1e-5)
        assert spent.epsilon == pytest.approx(exact, rel=1e-3)
        assert spent.neighbours == "zero_out_one"


def test_a_series_counts_every_epoch_that_it_meets() -> None:
    shuffled = SampledGaussian("shuffled", 100, 30, 5.0)
    for first, count in itertools.product(range(7), range(1, 9)):
        met = {step // 3 for step in range(first, first + count)}
        assert shuffled.counted(first, count) == 3 * len(met)
    assert shuffled.counted(5, 0) == 0
    assert MNIST.counted(5, 7) == 7


def test_fixed_size_is_for_replaced_examples_at_half_the_noise() -> None:
    drawn = SampledGaussian("fixed_size", 1000, 50, 4.0)
    spent = privacy_spent([(drawn, 20)], 1e-5, "rdp")
    made = library.rdp.RdpAccountant(neighboring_relation=library.NeighboringRelation.REPLACE_ONE)
    event = library.SampledWithoutReplacementDpEvent(1000, 50, library.GaussianDpEvent(2.0))
    assert spent.epsilon == pytest.approx(made.compose(event, 20).get_epsilon(1e-5), rel=1e-9)
    assert spent.neighbours == "replace_one"
    with pytest.raises(SettingError, match=r"accountant='pld': batches of fixed size .* \"rdp\""):
        privacy_spent([(drawn, 20)], 1e-5, "pld")
    all_of_them = SampledGaussian("fixed_size", 50, 50, 4.0)
    exact = gaussian_epsilon(2.0, 1e-5)
    assert privacy_spent([(all_of_them, 1)], 1e-5).epsilon == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("accountant", BOTH)
@pytest.mark.parametrize("sampling", ["poisson", "fixed_size", "shuffled", "full_batch"])
def test_more_noise_spends_less_and_more_steps_or_examples_more(
    sampling: Sampling, accountant: Accountant
) -> None:
    if sampling == "fixed_size" and accountant == "pld":
        return

    def spent(noise: float, steps: int, size: int = 10) -> float:
        mechanism = SampledGaussian(sampling, 200, 200 if sampling == "full_batch" else size, noise)
        return privacy_spent([(mechanism, steps)], 1e-5, accountant).epsilon

    by_noise = [spent(noise, 40) for noise in (0.0, 2.5, 5.0, 20.0)]
    assert by_noise[0] == math.inf
    assert by_noise == sorted(by_noise, reverse=True)
    assert len(set(by_noise)) == 4
    by_steps = [spent(5.0, steps) for steps in (0, 1, 40, 400)]
    assert by_steps[0] == 0
    assert by_steps == sorted(by_steps)
    assert len(set(by_steps[1:])) == 3
    if sampling in ("poisson", "fixed_size"):
        by_size = [spent(5.0, 40, size) for size in (2, 20, 100)]
        assert by_size == sorted(by_size)
        assert len(set(by_size)) == 3


@pytest.mark.parametrize(("accountant", "epsilon"), [("rdp", 0.5), ("rdp", 3.0), ("pld", 0.5)])
def test_the_noise_for_an_epsilon_spends_it(accountant: Accountant, epsilon: float) -> None:
    setting: dict[str, Any] = {"sampling": "poisson", "examples": 3000, "batch_size": 60}
    noise = noise_multiplier_for(epsilon, delta=1e-5, steps=200, accountant=accountant, **setting)
    mechanism = SampledGaussian(**setting, noise_multiplier=noise)
    spent = privacy_spent([(mechanism, 200)], 1e-5, accountant).epsilon
    assert epsilon * (1 - 1.01e-4) <= spent <= epsilon
    most = steps_for(epsilon, delta=1e-5, mechanism=mechanism, accountant=accountant)
    assert most == pytest.approx(200, abs=1)


def test_the_noise_of_a_full_batch_in_closed_form() -> None:
    setting: dict[str, Any] = {"sampling": "full_batch", "examples": 9, "batch_size": 9}
    found = noise_multiplier_for(1.0, delta=1e-5, steps=4, **setting)
    exact = 2 * optimize.brentq(lambda noise: gaussian_epsilon(noise, 1e-5) - 1.0, 0.5, 50)
    assert found == pytest.approx(exact, rel=1e-3)
    assert found >= exact * (1 - 1e-9)


@pytest.mark.parametrize("accountant", BOTH)
@pytest.mark.parametrize("epsilon", [1.5, 6.0])
def test_steps_for_an_epsilon_are_the_most(accountant: Accountant, epsilon: float) -> None:
    mechanism = SampledGaussian("poisson", 1000, 20, 1.5)
    most = steps_for(epsilon, delta=1e-5, mechanism=mechanism, accountant=accountant)
    assert privacy_spent([(mechanism, most)], 1e-5, accountant).epsilon <= epsilon
    assert privacy_spent([(mechanism, most + 1)], 1e-5, accountant).epsilon > epsilon


def test_steps_that_no_epsilon_pays_for_and_steps_without_end() -> None:
    rule: dict[str, Any] = {"delta": 1e-5, "accountant": "rdp"}
    assert steps_for(5.0, mechanism=SampledGaussian("poisson", 100, 10, 0.0), **rule) == 0
    assert steps_for(5.0, mechanism=SampledGaussian("full_batch", 10, 10, 0.5), **rule) == 0
    assert steps_for(5.0, mechanism=SampledGaussian("poisson", 100, 10, 1e6), **rule) == 10**9
    shuffled = SampledGaussian("shuffled", 100, 30, 5.0)
    assert steps_for(3.0, mechanism=shuffled, **rule) % shuffled.steps_per_epoch == 0


def test_what_is_hardly_private_is_bounded_by_rdp_at_once() -> None:
    loud = privacy_spent([(SampledGaussian("poisson", 100, 50, 0.05), 10**9)], 1e-5)
    assert loud.accountant == "rdp"
    assert 1e9 < loud.epsilon < math.inf


def test_no_noise_no_privacy() -> None:
    for accountant in BOTH:
        silent = SampledGaussian("poisson", 60000, 240, 0.0)
        assert privacy_spent([(silent, 1)], 1e-5, accountant).epsilon == math.inf
        assert privacy_spent([(silent, 0)], 1e-5, accountant).epsilon == 0
        mixed = privacy_spent([(MNIST, 10), (SeededNoise(MNIST), 1)], 1e-5, accountant)
        assert mixed.epsilon == math.inf


def test_relations_that_differ_do_not_compose() -> None:
    drawn, shuffled = (
        SampledGaussian("fixed_size", 9, 3, 1.0),
        SampledGaussian("shuffled", 9, 3, 1.0),
    )
    for other, name in ((drawn, "replace_one"), (shuffled, "zero_out_one")):
        found = f"steps='add_or_remove_one, {name}': an ε is for one neighbouring relation"
        with pytest.raises(SettingError, match=found):
            privacy_spent([(MNIST, 5), (other, 1)], 1e-5, "rdp")
    with pytest.raises(SettingError, match=r"steps=\[\]: at least one mechanism is needed"):
        privacy_spent([], 1e-5)


def test_bad_input_is_refused() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"sampling": "poison"}, "sampling='poison': one of poisson, fixed_size, shuffled"),
        ({"examples": 0}, "examples=0: a whole number of at least 1"),
        ({"batch_size": 11}, "batch_size=11: there are 10 examples, so at most as many"),
        ({"sampling": "full_batch"}, "batch_size=2: a full batch has all 10 examples"),
        ({"noise_multiplier": -0.5}, "noise_multiplier=-0.5: "),
        ({"noise_multiplier": math.nan}, "noise_multiplier=nan: "),
    ]
    right: dict[str, Any] = {"sampling": "poisson", "examples": 10, "batch_size": 2}
    for change, said in cases:
        with pytest.raises(SettingError, match=said):
            SampledGaussian(**{**right, "noise_multiplier": 1.0, **change})
    for delta in (0.0, 1.0, -1e-5, math.nan):
        with pytest.raises(SettingError, match=r"delta=.*: a number in \(0, 1\) is needed"):
            privacy_spent([(MNIST, 1)], delta)
    with pytest.raises(SettingError, match="accountant='prv': one of pld, rdp is needed"):
        privacy_spent([(MNIST, 1)], 1e-5, "prv")  # type: ignore[arg-type]
    for epsilon in (0.0, 101.0, math.inf):
        with pytest.raises(SettingError, match="epsilon=.*: a number above 0 and at most 100"):
            steps_for(epsilon, delta=1e-5, mechanism=MNIST)
    whole: dict[str, Any] = {"sampling": "full_batch", "examples": 9, "batch_size": 9}
    with pytest.raises(SettingError, match="epsilon=1e-09: no noise keeps to it"):
        noise_multiplier_for(1e-9, delta=1e-300, steps=3, accountant="rdp", **whole)


def test_states_are_plain_and_come_back() -> None:
    for mechanism in (MNIST, SampledGaussian("shuffled", 7, 2, 0.1), SeededNoise(OTHER)):
        assert mechanism_of(mechanism.state()) == mechanism
    bad: list[tuple[Any, str]] = [
        (None, "kind is None, known are sampled_gaussian, banded"),
        ({"kind": "laplace"}, "kind is 'laplace'"),
        ({**MNIST.state(), "examples": "many"}, "the mechanism.examples is 'many'"),
        ({**MNIST.state(), "batch_size": 60001}, "batch_size=60001: there are 60000"),
        ({**MNIST.state(), "noise_multiplier": math.nan}, "the mechanism.noise_multiplier is nan"),
        ({**MNIST.state(), "q": 1}, "the mechanism.q is 1, but no such entry"),
        ({"kind": "seeded_noise"}, "kind is None, known are"),
        ({"kind": "seeded_noise", "of": SeededNoise(MNIST).state()}, "its noise is seeded twice"),
    ]
    for state, said in bad:
        with pytest.raises(DataError, match=f"this is no mechanism of private steps .{said}"):
            mechanism_of(state)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    fresh = GaussianEvent(1.2345, 0.5)
    with pytest.raises(DataError, match=r"pip install 'torch-metalearn\[privacy\]'"):
        rdp_epsilon({fresh: 1}, 1e-5)


def test_warnings_of_the_library_stay_inside(caplog: pytest.LogCaptureFixture) -> None:
    """Orders that it leaves out are its own affair; what others log at the time comes through."""
    logger = logging.getLogger("absl")
    before = list(logger.filters)
    heard: list[str] = []

    class Talkative(dict[GaussianEvent, int]):
        def items(self) -> Any:
            logger.warning("before")
            return super().items()

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear = Ear()
    logger.addHandler(ear)
    try:
        library.rdp.RdpAccountant().compose(poisson(0.5, 10.0))
        loud = len(heard)
        assert "failed to converge" in heard[0]
        other = threading.Thread(target=logger.warning, args=("of another thread",))
        other.start()
        other.join()
        assert math.isfinite(rdp_epsilon(Talkative({GaussianEvent(10.0, 0.5): 1}), 1e-5))
    finally:
        logger.removeHandler(ear)
    assert logger.filters == before
    assert heard[loud:] == ["of another thread", "before"]


@pytest.mark.parametrize("sigmas", [{1.0: 1}, {3.0: 5}, {40.0: 1000}, {2.0: 3, 5.0: 7, 0.9: 1}])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9])
def test_mechanisms_over_all_data_are_one_gaussian_mechanism(
    sigmas: dict[float, int], delta: float
) -> None:
    """δ(ε) = Φ(μ/2 − ε/μ) − e^ε·Φ(−μ/2 − ε/μ), μ² = Σ count/σ² (Balle and Wang, 2018)."""
    steps = [(SampledGaussian("full_batch", 9, 9, sigma), n) for sigma, n in sigmas.items()]
    epsilon = privacy_spent(steps, delta).epsilon
    mu = math.sqrt(sum(n / sigma**2 for sigma, n in sigmas.items()))

    def below(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    found = below(mu / 2 - epsilon / mu) - math.exp(epsilon) * below(-mu / 2 - epsilon / mu)
    assert found == pytest.approx(delta, rel=1e-6)
