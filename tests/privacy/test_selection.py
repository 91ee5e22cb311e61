"""What it costs to release the best of several runs.

Axes: K runs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from metalearn.errors import SettingError
from metalearn.privacy import SampledGaussian, number_of_runs, privacy_spent, selection_spent
from metalearn.privacy.selection import _drawn
from metalearn.random_streams import AddressedStream

dp_accounting = pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
POISSON = SampledGaussian("poisson", 1000, 100, 3.0)
ORDERS = dp_accounting.rdp.RdpAccountant().orders


def divergences(mechanism: SampledGaussian, steps: int) -> Any:
    relation = dp_accounting.NeighboringRelation
    gaussian = dp_accounting.GaussianDpEvent(mechanism.noise_multiplier)
    if mechanism.sampling == "fixed_size":
        accountant = dp_accounting.rdp.RdpAccountant(neighboring_relation=relation.REPLACE_ONE)
        half = dp_accounting.GaussianDpEvent(mechanism.noise_multiplier / 2)
        accountant.compose(dp_accounting.SampledWithoutReplacementDpEvent(1000, 100, half), steps)
    else:
        accountant = dp_accounting.rdp.RdpAccountant()
        accountant.compose(dp_accounting.PoissonSampledDpEvent(0.1, gaussian), steps)
    return accountant.rdp


@pytest.mark.parametrize("sampling", ["poisson", "fixed_size"])
@pytest.mark.parametrize("runs", [2.0, 10.0, 100.0])
def test_it_is_the_theorem_for_a_geometric_number_of_runs(sampling: Any, runs: float) -> None:
    mechanism = SampledGaussian(sampling, 1000, 100, 5.0)
    rdp = divergences(mechanism, 50)
    orders = np.asarray(ORDERS)
    above = orders > 1
    own = rdp[above]
    # ε'(λ) = ε(λ) + (1 + η)·(1 − 1/λ̂)·ε(λ̂) + (1 + η)·log(1/γ)/λ̂ + log E[K]/(λ − 1), γ = 1/E[K]
    other = np.min(2 * (1 - 1 / orders[above]) * own + 2 * math.log(runs) / orders[above])
    total = own + other + math.log(runs) / (orders[above] - 1)
    wanted = min(
        r + math.log1p(-1 / a) - math.log(1e-5 * a) / (a - 1) for a, r in zip(orders[above], total)
    )
    found = selection_spent([(mechanism, 50)], 1e-5, runs=runs)
    assert found.epsilon == pytest.approx(wanted, rel=1e-6)
    assert found.neighbours == mechanism.neighbours and found.accountant == "rdp"


@pytest.mark.parametrize("distribution", ["geometric", "poisson"])
def test_the_best_of_many_costs_less_than_all_of_them(distribution: Any) -> None:
    before = privacy_spent([(POISSON, 100)], 1e-5, "rdp").epsilon
    for runs in (5, 20, 80):
        every = privacy_spent([(POISSON, 100 * runs)], 1e-5, "rdp").epsilon
        best = selection_spent([(POISSON, 100)], 1e-5, runs=runs, distribution=distribution)
        assert before < best.epsilon < every
        before = best.epsilon


def test_without_noise_or_steps_it_is_what_one_expects() -> None:
    quiet = SampledGaussian("poisson", 1000, 100, 0.0)
    assert selection_spent([(quiet, 3)], 1e-5, runs=5).epsilon == math.inf
    assert selection_spent([(POISSON, 0)], 1e-5, runs=5).epsilon == 0.0


@pytest.mark.parametrize("mean", [1.5, 6.0])
@pytest.mark.parametrize("distribution", ["geometric", "poisson"])
def test_the_number_of_runs_is_distributed_as_it_says(distribution: Any, mean: float) -> None:
    stream = AddressedStream(0, "runs", 0)
    drawn = np.array([_drawn(stream, mean, distribution) for _ in range(4000)])
    for k in range(6):
        if distribution == "geometric":
            wanted = 0.0 if k == 0 else (1 - 1 / mean) ** (k - 1) / mean
        else:
            wanted = math.exp(-mean) * mean**k / math.factorial(k)
        spread = math.sqrt(max(wanted * (1 - wanted), 1e-9) / len(drawn))
        assert abs(float((drawn == k).mean()) - wanted) <= 4.5 * spread + 1e-9
    assert float(drawn.mean()) == pytest.approx(mean, rel=0.1)
    assert number_of_runs(mean, distribution) >= (distribution == "geometric")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"runs": 1.0}, r"runs=1\.0: "),
        ({"runs": math.inf}, "runs=inf: "),
        ({"runs": 0.0, "distribution": "poisson"}, r"runs=0\.0: "),
        ({"runs": 3.0, "distribution": "uniform"}, "distribution='uniform': "),
    ],
)
def test_a_number_of_runs_out_of_range_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        selection_spent([(POISSON, 3)], 1e-5, **given)
    with pytest.raises(SettingError, match=message):
        number_of_runs(**given)
