"""A clipping norm that follows a quantile of norms: what it costs and where it goes.

Axes: N examples of a step.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from metalearn.errors import SettingError
from metalearn.privacy import QuantileNorm


@pytest.mark.parametrize("sigma", [0.3, 1.0, 7.0])
@pytest.mark.parametrize("noise", [None, 4.0, 30.0])
def test_both_sums_together_cost_what_the_multiplier_says(sigma: float, noise: Any) -> None:
    norm = QuantileNorm(1.0, noise_multiplier=sigma, expected=200, noise=noise)
    # An example moves the gradients' sum over C by 1, and that of its bit less a half by a half.
    moved = (1 / norm.gradient_noise) ** 2 + (0.5 / norm.noise) ** 2
    assert moved == pytest.approx(1 / sigma**2, rel=1e-12)
    assert norm.noise == (max(10.0, sigma) if noise is None else noise)


def test_bits_are_of_norms_within_it_and_one_example_moves_them_by_half() -> None:
    norm = QuantileNorm(2.0, noise_multiplier=1.0, expected=4)
    norms = torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0])
    assert float(norm.bits(norms)) == 3 - 2.5
    assert [float(norm.bits(norms[:n])) for n in range(6)] == [0.0, 0.5, 1.0, 1.5, 1.0, 0.5]


def test_the_step_is_that_of_the_paper_and_holds_from_the_next_one_on() -> None:
    norm = QuantileNorm(2.0, noise_multiplier=1.0, expected=10, quantile=0.7, rate=0.3)
    norm.follow(4.0)  # a share of 0.9 within
    assert norm.norm == 2.0
    norm.follow(1.0)  # the same step looked at again: 0.6
    norm.advance()
    assert norm.norm == pytest.approx(2 * math.exp(-0.3 * (0.6 - 0.7)), rel=1e-12)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
def test_it_comes_to_the_quantile_from_afar(quantile: float) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = QuantileNorm(1e-3, noise_multiplier=1.0, expected=500, quantile=quantile)
    found = []
    for _ in range(300):
        norms = torch.randn(500, generator=generator).exp()
        noise = norm.noise * float(torch.randn((), generator=generator))
        norm.advance()
        norm.follow(float(norm.bits(norms)) + noise)
        found.append(norm.norm)
    wanted = math.exp(float(torch.special.ndtri(torch.tensor(quantile, dtype=torch.float64))))
    assert sum(found[-100:]) / 100 == pytest.approx(wanted, rel=0.06)


def test_noise_however_large_moves_it_by_one_factor_e_at_most() -> None:
    norm = QuantileNorm(1.0, noise_multiplier=1.0, expected=1)
    for noisy, wanted in ((1e9, math.exp(-1)), (-1e9, math.exp(1))):
        norm.follow(noisy)
        assert norm.state() == {"clipping_norm": pytest.approx(wanted)}


def test_its_state_is_the_norm_of_the_next_step() -> None:
    norm = QuantileNorm(1.0, noise_multiplier=1.0, expected=10)
    norm.follow(3.0)
    other = QuantileNorm(5.0, noise_multiplier=1.0, expected=10)
    other.load_state(norm.state())
    norm.advance()
    assert other.norm == norm.norm != 1.0
    for kind in norm.state_kinds():
        kind(norm.state(), "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 0.0}, "start=0.0: "),
        ({"start": math.inf}, "start=inf: "),
        ({"noise_multiplier": 0.0}, "noise_multiplier=0.0: "),
        ({"quantile": 0.0}, "quantile=0.0: "),
        ({"quantile": 1.0}, "quantile=1.0: "),
        ({"rate": 0.0}, "rate=0.0: "),
        ({"rate": math.inf}, "rate=inf: "),
        ({"expected": 0}, "expected=0: "),
        ({"noise": 0.5}, r"noise=0.5: a number above σ/2 = 0.5 is needed"),
        ({"noise": math.inf}, "noise=inf: "),
    ],
)
def test_a_number_out_of_its_range_is_refused(settings: dict[str, Any], message: str) -> None:
    given: Any = {"start": 1.0, "noise_multiplier": 1.0, "expected": 10, **settings}
    with pytest.raises(SettingError, match=message):
        QuantileNorm(given.pop("start"), **given)
