"""Lower bounds of ε: closed forms, mechanisms that are known, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from metalearn.auditing import epsilon_lower_bound, gaussian_epsilon
from metalearn.errors import SettingError
from tests.support.oracles import generator


def normal(shift: float, count: int, seed: int) -> torch.Tensor:
    return shift + torch.randn(count, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9])
def test_epsilon_of_a_gaussian_mechanism_has_its_delta(mu: float, delta: float) -> None:
    epsilon = gaussian_epsilon(mu, delta)
    z = torch.linspace(-40, 40, 800_001, dtype=torch.float64)  # the privacy loss, by its definition
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    other = torch.exp(-((z - mu) ** 2) / 2) / math.sqrt(2 * math.pi)
    known = torch.trapezoid((other - math.exp(epsilon) * density).clamp_min(0), z)
    if epsilon:
        assert float(known) == pytest.approx(delta, rel=1e-3)
    else:
        assert float(known) <= delta


@pytest.mark.parametrize("seed", range(5))
def test_bounds_of_a_gaussian_mechanism_are_below_it_and_close(seed: int) -> None:
    found = epsilon_lower_bound(normal(1, 4000, seed), normal(0, 4000, 100 + seed), delta=1e-5)
    assert 0.75 < found.mu <= 1.0
    assert found.gaussian_epsilon <= gaussian_epsilon(1.0, 1e-5)
    assert found.epsilon <= found.gaussian_epsilon
    assert found.trials == 2000


def test_the_bound_is_wrong_as_seldom_as_is_said() -> None:
    wrong = 0
    for seed in range(100):
        found = epsilon_lower_bound(
            normal(0.5, 40, seed), normal(0, 40, 1000 + seed), delta=1e-5, confidence=0.8
        )
        wrong += found.mu > 0.5
    assert wrong <= 0.2 * 100 + 3 * math.sqrt(100 * 0.2 * 0.8)


def test_rates_are_of_other_scores_than_the_threshold() -> None:
    """The first halves are apart, and the second ones the other way round."""
    high, low = torch.ones(500, dtype=torch.float64), torch.zeros(500, dtype=torch.float64)
    found = epsilon_lower_bound(torch.cat([high, low]), torch.cat([low, high]), delta=1e-5)
    assert found.false_positives == found.false_negatives == 1
    assert (found.epsilon, found.gaussian_epsilon, found.mu) == (0, 0, 0)


def test_worlds_that_are_the_same_or_wholly_apart() -> None:
    same = torch.zeros(100, dtype=torch.float64)
    none = epsilon_lower_bound(same, same, delta=1e-5)
    assert (none.epsilon, none.gaussian_epsilon, none.mu) == (0, 0, 0)
    apart = epsilon_lower_bound(same + 1, same, delta=1e-5, confidence=0.9)
    rate = 1 - 0.05 ** (1 / 50)  # of Clopper and Pearson, nothing seen in 50
    assert apart.false_positives == pytest.approx(rate) == apart.false_negatives
    assert apart.epsilon == pytest.approx(math.log((1 - 1e-5 - rate) / rate))
    inside = torch.tensor([math.inf, 1.0] * 50)
    assert epsilon_lower_bound(inside, torch.zeros(100), delta=1e-5).mu > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inside": torch.zeros(3)}, r"inside=\[3\]: at least 4 scores"),
        ({"outside": torch.zeros(4, 2)}, r"outside=\[4, 2\]: at least 4 scores"),
        ({"outside": torch.full((9,), math.nan)}, "outside='NaN': numbers are needed"),
        ({"delta": 0.0}, "delta=0.0: "),
        ({"confidence": 1.0}, "confidence=1.0: "),
    ],
)
def test_mistakes_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    given: Any = {"inside": torch.ones(9), "outside": torch.zeros(9), "delta": 1e-5, **changes}
    with pytest.raises(SettingError, match=message):
        epsilon_lower_bound(given.pop("inside"), given.pop("outside"), **given)
