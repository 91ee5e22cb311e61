"""Noise: against the polar method by loops, moments, tails, independence, types and devices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from metalearn.errors import SettingError
from metalearn.privacy import add_gaussian_noise, gaussian_noise
from metalearn.privacy.noise import _CHUNK, _mixed, _pairs, _sums

MANY = 400_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


MADE: dict[str, Callable[[Any, int], NDArray[np.float64]]] = {"sums": _sums, "mixed": _mixed}
"""Ways from words to values: of float64 and of shorter types."""


def drawn(way: str, count: int) -> NDArray[np.float64]:
    return MADE[way](Tape(5), count)


class Tape:
    """Words of which it is known what they were."""

    def __init__(self, seed: int) -> None:
        self._raw, self.said = np.random.PCG64(seed), [np.empty(0, np.uint64)]

    def __call__(self, count: int) -> NDArray[np.uint64]:
        self.said.append(self._raw.random_raw(count))
        return self.said[-1]


def polar(words: NDArray[np.uint64]) -> list[tuple[float, float]]:
    """Pairs of normal values by plain arithmetic: u of half of the words, v of the others."""
    found = []
    half = len(words) // 2
    for a, b in zip(words[:half].tolist(), words[half:].tolist()):
        u, v = (((word >> 12) + 0.5) / 2**51 - 1 for word in (a, b))
        s = u * u + v * v
        if s < 1:
            factor = math.sqrt(-2 * math.log(s) / s)
            found.append((u * factor, v * factor))
    return found


def test_pairs_are_those_of_the_polar_method() -> None:
    tape = Tape(0)
    one, other = _pairs(tape, 300)
    expected = np.array([pair for words in tape.said for pair in polar(words)][:300])
    np.testing.assert_allclose(np.stack([one, other], 1), expected, rtol=1e-13)


def test_each_value_is_of_four_pairs() -> None:
    tape = Tape(1)
    found = _sums(tape, 7)  # four rows of four pairs
    pairs = np.array([pair for words in tape.said for pair in polar(words)][:16]).reshape(4, 4, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    expected = np.concatenate([a[0] + a[1] + b[2] + b[3], b[0] + b[1] + a[2] + a[3]]) / 2
    np.testing.assert_allclose(found, expected[:7], rtol=1e-13)


@pytest.mark.parametrize("way", MADE)
def test_moments_and_tails(way: str) -> None:
    z = drawn(way, MANY)
    error = 1 / math.sqrt(MANY)
    assert abs(z.mean()) < 4 * error
    assert abs(z.var() - 1) < 4 * math.sqrt(2) * error
    assert abs((z**3).mean()) < 4 * math.sqrt(15) * error
    assert abs(stats.kurtosis(z)) < 4 * math.sqrt(24) * error
    for threshold in (0.5, 1.0, 2.0, 3.0, 4.0):
        expected = 2 * stats.norm.sf(threshold)
        spread = math.sqrt(expected * (1 - expected) / MANY)
        assert abs((np.abs(z) > threshold).mean() - expected) < 4 * spread
    assert stats.kstest(z, "norm").pvalue > 1e-4
    assert 4.2 < np.abs(z).max() < 6.5


def test_of_four_draws_four_values_by_orthogonal_signs() -> None:
    tape = Tape(3)
    found = _mixed(tape, 21)  # rows of three: four pairs make eight values
    pairs = np.array([pair for words in tape.said for pair in polar(words)][:12]).reshape(4, 3, 2)
    values = np.concatenate([found, [np.nan] * 3]).reshape(2, 2, 2, 3)  # sign, sign, of a pair
    for last, first, which in itertools.product(range(2), repeat=3):
        one, two = (pairs[k, :, which] + (-1) ** first * pairs[k + 1, :, which] for k in (0, 2))
        expected = (one + (-1) ** last * two) / 2
        known = ~np.isnan(values[last, first, which])
        np.testing.assert_allclose(
            values[last, first, which][known], expected[known], rtol=1e-12, atol=1e-15
        )


def test_the_first_draws_are_normal_themselves() -> None:
    one, other = _pairs(Tape(2), MANY)
    for z in (one, other):
        assert abs(z.var() - 1) < 4 * math.sqrt(2 / MANY)
        assert stats.kstest(z, "norm").pvalue > 1e-4
    correlations = (np.mean(one * other), np.mean((one**2 - 1) * (other**2 - 1)) / 2)
    assert max(map(abs, correlations)) < 4 / math.sqrt(MANY)


@pytest.mark.parametrize("way", MADE)
def test_elements_are_independent(way: str) -> None:
    """Neighbours, elements of the same draws (so many eighths of a chunk apart), the next chunk."""
    z = drawn(way, MANY // _CHUNK * _CHUNK)
    for lag in (1, 2, _CHUNK // 2 + 1, *(_CHUNK * eighth // 8 for eighth in range(1, 9))):
        first, second = z[:-lag], z[lag:]
        bound = 4.5 / math.sqrt(len(first))
        assert abs(np.mean(first * second)) < bound
        assert abs(np.mean((first**2 - 1) * (second**2 - 1)) / 2) < bound
        assert abs(np.mean(first * (second**2 - 1)) / math.sqrt(2)) < bound


def test_leaves_and_calls_are_independent() -> None:
    like = {"a": torch.zeros(200, 100), "b": [torch.zeros(20_000), torch.zeros(20_000)]}
    for generator in (seeded(), None):
        calls = [gaussian_noise(like, 1.0, generator=generator) for _ in range(2)]
        every = [leaf.flatten().double() for c in calls for leaf in (c["a"], *c["b"])]
        together = torch.corrcoef(torch.stack(every))
        away = together - torch.eye(6, dtype=torch.float64)
        assert away.abs().max() < 6.5 / math.sqrt(20_000)
        assert away.abs().max() > 0


def test_secure_noise_is_normal_and_never_the_same() -> None:
    like = torch.zeros(50_001)
    one, other = gaussian_noise(like, 2.0), gaussian_noise(like, 2.0)
    assert not torch.equal(one, other)
    for z in (one, other):
        assert abs(z.mean()) < 7 * 2 / math.sqrt(len(z))
        assert abs(z.var() / 4 - 1) < 7 * math.sqrt(2 / len(z))
        assert stats.kstest(z.double().numpy() / 2, "norm").pvalue > 1e-9


@pytest.mark.parametrize("count", [0, 1, 2, 5, _CHUNK - 1, _CHUNK, _CHUNK + 1, 3 * _CHUNK + 7])
def test_any_number_of_elements(count: int) -> None:
    for way in MADE:
        z = drawn(way, count)
        assert z.shape == (count,)
        assert len(np.unique(z)) == count
        assert np.isfinite(z).all()


def test_a_seeded_generator_repeats_and_goes_on() -> None:
    like = torch.zeros(100)
    generator = seeded(3)
    first, second = (gaussian_noise(like, 1.0, generator=generator) for _ in range(2))
    assert torch.equal(first, gaussian_noise(like, 1.0, generator=seeded(3)))
    assert not torch.equal(first, second)


def test_what_is_given_back_is_like_what_was_given() -> None:
    like: dict[str, Any] = {
        "w": torch.ones(3, 4, requires_grad=True),
        "half": torch.zeros(2, dtype=torch.bfloat16),
        "number": torch.zeros((), dtype=torch.float64),
        "none": torch.zeros(0, 5),
    }
    found = gaussian_noise(like, 0.5, generator=seeded())
    for name, value in like.items():
        assert found[name].shape == value.shape
        assert found[name].dtype == value.dtype
        assert not found[name].requires_grad
    wide = {name: value.double() for name, value in like.items()}
    exact, twice = (gaussian_noise(wide, std, generator=seeded()) for std in (0.5, 1.0))
    for name, value in exact.items():
        assert torch.equal(found[name], value.to(found[name].dtype))
        assert torch.equal(2 * value, twice[name])
    silent = gaussian_noise(like, 0.0)
    assert all(not value.any() for value in silent.values())


def test_noise_is_added_in_float64_and_rounded_once() -> None:
    """Where a sum and its noise nearly cancel, the difference is that of the exact numbers."""
    narrow = [torch.linspace(-1, 1, 3000), torch.ones(5, dtype=torch.bfloat16)]
    bits = torch.randint(-(2**63), 2**63 - 1, (2 * 10**5,), generator=seeded()).numpy()
    used = iter([bits.view(np.uint64)])

    def replayed(count: int) -> NDArray[np.uint64]:
        return next(used)[:count]

    exact = torch.from_numpy(_mixed(replayed, 3005)) * 0.7
    found = add_gaussian_noise(narrow, 0.7, generator=seeded())
    for value, noise, noisy in zip(narrow, exact.split([3000, 5]), found):
        assert noisy.dtype == value.dtype
        assert torch.equal(noisy, (value.double() + noise).to(value.dtype))
    apart = gaussian_noise(narrow, 0.7, generator=seeded())
    assert not torch.equal(narrow[0] + apart[0], found[0])
    assert torch.equal(narrow[0], torch.linspace(-1, 1, 3000))
    sums = {"a": torch.tensor([1.5, -2.0], dtype=torch.float64)}
    noise = gaussian_noise(sums, 2.0, generator=seeded())
    noisy = add_gaussian_noise(sums, 2.0, generator=seeded())
    assert torch.equal(noisy["a"], sums["a"] + noise["a"])
    assert torch.equal(add_gaussian_noise(sums, 0.0)["a"], sums["a"])


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    gaussian_noise(torch.zeros(10), 1.0)
    gaussian_noise(torch.zeros(10), 1.0, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_input_is_refused() -> None:
    for likes, std, said in (
        ({}, 1.0, "likes={}: a tree with at least one tensor is needed"),
        ({"a": torch.arange(3)}, 1.0, "a floating-point tensor is needed"),
        (torch.zeros(3), -1.0, "std=-1.0"),
        (torch.zeros(3), math.inf, "std=inf"),
    ):
        with pytest.raises(SettingError, match=said):
            gaussian_noise(likes, std)
        with pytest.raises(SettingError, match=said.replace("likes", "sums")):
            add_gaussian_noise(likes, std)
