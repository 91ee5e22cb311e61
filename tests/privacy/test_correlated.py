"""Correlated noise, step by step, against the whole matrix; series that begin anew.

Axes: n steps, b bands, P elements.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.errors import SettingError
from metalearn.privacy import (
    CorrelatedNoise,
    add_gaussian_noise,
    banded_strategy,
    gaussian_noise,
    prefix_error,
)
from tests.privacy.test_strategies import dense


def of_step(seed: int) -> Callable[[int], torch.Generator]:
    return lambda step: torch.Generator().manual_seed(1000 * seed + step)


def rows(
    noise: CorrelatedNoise, steps: range, size: int, seed: int | None = None, std: float = 1.0
) -> Tensor:
    """``[n, P]`` of noise alone, in float64."""
    zeros = {"w": torch.zeros(size, dtype=torch.float64)}
    generator = None if seed is None else of_step(seed)
    found = [noise.add(zeros, std, step=step, generator=generator)["w"] for step in steps]
    assert not zeros["w"].any()
    return torch.stack(found)


def independent(steps: range, size: int, seed: int) -> Tensor:
    """``[n, P]``: z of the same generators."""
    like = torch.zeros(size, dtype=torch.float64)
    return torch.stack([gaussian_noise(like, 1.0, generator=of_step(seed)(t)) for t in steps])


@pytest.mark.parametrize("bands", [1, 2, 3, 7, 20])
def test_the_strategy_times_the_noise_is_independent_noise(bands: int) -> None:
    strategy = banded_strategy(20, bands)
    found = rows(CorrelatedNoise(strategy), range(50), 6, seed=3)
    recovered = dense(strategy, 50) @ found
    torch.testing.assert_close(recovered, independent(range(50), 6, 3), rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_band_is_independent_noise_bit_for_bit(dtype: torch.dtype) -> None:
    sums = {"w": torch.randn(3, 5).to(dtype), "b": torch.randn(5).to(dtype)}
    noise = CorrelatedNoise(banded_strategy(9, 1))
    for step in (0, 1, 2, 7):
        found = noise.add(sums, 0.7, step=step, generator=of_step(1))
        wanted = add_gaussian_noise(sums, 0.7, generator=of_step(1)(step))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("bands", [1, 4])
def test_sums_over_steps_vary_as_the_closed_form_says(bands: int, seed: int | None) -> None:
    steps, size = 40, 20_000
    strategy = banded_strategy(steps, bands)
    found = rows(CorrelatedNoise(strategy), range(steps), size, seed=seed, std=0.5)
    variance = found.cumsum(0).square().mean(1)
    sums = torch.tril(torch.ones(steps, steps, dtype=torch.float64))
    exact = 0.25 * (sums @ torch.linalg.inv(dense(strategy, steps))).square().sum(1)
    assert (variance / exact - 1).abs().max() < 7 * math.sqrt(2 / size)
    mean = float(variance.mean().sqrt())
    assert mean == pytest.approx(0.5 * prefix_error(strategy, steps), rel=0.02)


def test_more_bands_leave_less_in_the_sums_and_more_in_a_step() -> None:
    one, many = (
        rows(CorrelatedNoise(banded_strategy(64, bands)), range(64), 2000, seed=5)
        for bands in (1, 16)
    )
    assert many[-1].std() > 1.2 * one[-1].std()
    assert many.sum(0).std() < 0.5 * one.sum(0).std()


def test_a_step_that_does_not_follow_begins_a_new_series() -> None:
    """In secure noise nothing of the series before is left: no row of one meets the other's."""
    strategy, size = banded_strategy(12, 4), 40_000
    noise = CorrelatedNoise(strategy)
    before = rows(noise, range(6), size)
    for first in (3, 9, 9):  # back, ahead, and the same step again
        after = rows(noise, range(first, first + 1), size)
        assert float(after.std()) == pytest.approx(1 / float(strategy[0]), rel=0.02)
        close = (before * after).mean(1) / (before.std(1) * after.std())
        assert close.abs().max() < 6 / math.sqrt(size)
    going_on = rows(noise, range(10, 12), size)
    close = (after[0] * going_on[0]).mean() / (after.std() * going_on[0].std())
    assert close < -0.2


def test_seeded_noise_is_made_anew_bit_for_bit() -> None:
    strategy = banded_strategy(15, 5)
    whole = rows(CorrelatedNoise(strategy), range(15), 8, seed=2)
    resumed = CorrelatedNoise(strategy)
    assert torch.equal(rows(resumed, range(9, 15), 8, seed=2), whole[9:])
    assert torch.equal(rows(resumed, range(4, 6), 8, seed=2), whole[4:6])


def test_sums_are_rounded_once_and_std_may_differ_between_steps() -> None:
    """Clipped to another C, a step's noise is of the same z in other units."""
    strategy = banded_strategy(6, 3)
    plain = rows(CorrelatedNoise(strategy), range(6), 50, seed=4)
    noise = CorrelatedNoise(strategy)
    sums = torch.randn(50)
    for step, std in enumerate((1.0, 0.5, 4.0, 0.0, 1e-3, 2.0)):
        found = noise.add(sums.double(), std, step=step, generator=of_step(4))
        assert torch.equal(found, sums.double() + std * plain[step])
    short = CorrelatedNoise(strategy).add(sums, 1.0, step=0, generator=of_step(4))
    assert short.dtype == torch.float32


def test_it_keeps_what_it_needs_and_no_matrix() -> None:
    """b − 1 rows, however many steps there are."""
    noise = CorrelatedNoise(banded_strategy(1000, 3))
    rows(noise, range(5), 1000)
    gc.collect()
    held = sum(v.numel() for v in vars(noise).values() if isinstance(v, Tensor))
    assert held == 2 * 1000 + 3


def test_bad_input_is_refused() -> None:
    noise = CorrelatedNoise(torch.tensor([0.8, 0.6], dtype=torch.float64))
    noise.add(torch.zeros(3), 1.0, step=0)
    cases: list[tuple[Any, str]] = [
        (lambda: CorrelatedNoise(torch.tensor([1.0, 0.5])), "'of norm 1.11803': a norm of at mo"),
        (lambda: CorrelatedNoise(torch.tensor([0.0, 1.0])), "the first of them above 0"),
        (lambda: CorrelatedNoise(torch.tensor([-1.0])), "the first of them above 0"),
        (lambda: CorrelatedNoise(torch.tensor([math.nan])), "finite numbers are needed"),
        (lambda: CorrelatedNoise(torch.tensor([0.5, math.nan])), "finite numbers are needed"),
        (lambda: CorrelatedNoise(torch.ones(1, 1)), r"strategy=\[1, 1\]: numbers \[b\]"),
        (lambda: CorrelatedNoise(torch.ones(1, dtype=torch.int64)), "a floating-point tensor"),
        (lambda: CorrelatedNoise(torch.ones(0)), r"strategy=\[0\]: numbers \[b\]"),
        (lambda: noise.add(torch.zeros(3), -1.0, step=1), "std=-1.0"),
        (lambda: noise.add(torch.zeros(3), 1.0, step=-1), "step=-1"),
        (lambda: noise.add(torch.zeros(3, dtype=torch.int64), 1.0, step=1), "sums"),
        (lambda: noise.add(torch.zeros(4), 1.0, step=1), "sums='4 elements': 3 elements are ne"),
    ]
    for call, said in cases:
        with pytest.raises(SettingError, match=said):
            call()
