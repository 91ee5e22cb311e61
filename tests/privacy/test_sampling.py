"""Batches: inclusion frequencies against q, independence, empty batches, epochs."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from metalearn.errors import SettingError
from metalearn.privacy import (
    BatchSampling,
    FixedSizeSampling,
    PoissonSampling,
    SampledGaussian,
    ShuffledSampling,
    sampling_of,
)

SEEDS = [0, None]
"""Fixed draws, and secure ones whose bounds are wide enough for all time."""


def drawn(sampling: BatchSampling, steps: int, population: int) -> Tensor:
    """``[steps, population]``, whether an example is in a batch."""
    included = torch.zeros(steps, population)
    for step in range(steps):
        included[step, sampling.draw(step)] += 1
    assert included.max() <= 1
    return included.double()


def check_frequencies(counts: Counter[Any], expected: dict[Any, float], draws: int) -> None:
    """Chi-square within seven standard deviations of its expectation.

    What is expected less than ten times is counted together, rarest first: a chi-square of rare
    counts has far longer tails, and one of secure draws would fail now and then.
    """
    assert set(counts) <= set(expected)
    cells, seen, wanted = [], 0, 0.0
    for key, chance in sorted(expected.items(), key=lambda item: item[1]):
        seen, wanted = seen + counts[key], wanted + draws * chance
        if wanted >= 10:
            cells.append((seen, wanted))
            seen, wanted = 0, 0.0
    assert wanted == 0
    chi = sum((found - mean) ** 2 / mean for found, mean in cells)
    assert chi < len(cells) - 1 + 7 * math.sqrt(2 * (len(cells) - 1)) + 7


def check_apart(together: Tensor, draws: int, rate: float) -> None:
    """No two of N examples come together more often than independent ones of ``rate``.

    Correlations ``[N, N]`` of indicators; they come together a Poisson-like number of times, whose
    upper tail is longer than a normal one. The mean of r²·draws over all pairs is 1.
    """
    mean, spread = draws * rate**2, draws * rate * (1 - rate)
    chance = 1e-9 / together.numel()
    pairs = together[tuple(torch.triu_indices(*together.shape, offset=1))]
    assert pairs.max() * spread < 1.2 * (stats.poisson.isf(chance, mean) - mean) + 1
    assert abs(pairs.square().mean() * draws - 1) < 0.1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_every_subset_has_its_probability(rate: float, seed: int | None) -> None:
    """Of four examples: q^k·(1−q)^(4−k) for each of 16 subsets, the empty one among them."""
    sampling, draws = PoissonSampling(4, rate, seed=seed), 4000
    counts = Counter(tuple(sampling.draw(step).tolist()) for step in range(draws))
    subsets = [c for size in range(5) for c in itertools.combinations(range(4), size)]
    expected = {c: rate ** len(c) * (1 - rate) ** (4 - len(c)) for c in subsets}
    check_frequencies(counts, expected, draws)
    assert counts[()] > 0 or rate == 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_each_example_is_included_with_q_by_itself(seed: int | None) -> None:
    population, rate, steps = 300, 0.07, 2500
    included = drawn(PoissonSampling(population, rate, seed=seed), steps, population)
    spread = math.sqrt(rate * (1 - rate) / steps)
    assert (included.mean(0) - rate).abs().max() < 6.5 * spread
    assert abs(included.mean() - rate) < 6.5 * spread / math.sqrt(population)
    sizes = included.sum(1)
    variance = population * rate * (1 - rate)
    assert abs(sizes.var() / variance - 1) < 7 * math.sqrt(2 / steps)
    check_apart(torch.corrcoef(included.T), steps, rate)
    next_step = (included[1:] - rate) * (included[:-1] - rate)
    assert abs(next_step.mean()) < 7 * rate / math.sqrt(next_step.numel())


def test_batches_may_be_empty() -> None:
    sampling = PoissonSampling(20, 0.01, seed=1)
    sizes = [len(sampling.draw(step)) for step in range(1000)]
    expected = 0.99**20
    spread = math.sqrt(expected * (1 - expected) / 1000)
    assert abs(sizes.count(0) / 1000 - expected) < 4 * spread
    empty = sampling.draw(sizes.index(0))
    assert empty.shape == (0,)
    assert empty.dtype == torch.int64


def test_extreme_rates() -> None:
    assert PoissonSampling(7, 1.0).draw(0).tolist() == list(range(7))
    assert len(PoissonSampling(7, 1e-320).draw(0)) == 0
    assert len(PoissonSampling(1, 1e-12).draw(0)) == 0
    nearly = PoissonSampling(1000, 1 - 1e-12, seed=0).draw(0)
    assert nearly.tolist() == list(range(1000))


@pytest.mark.parametrize("seed", SEEDS)
def test_batches_of_fixed_size_are_uniform(seed: int | None) -> None:
    sampling, draws = FixedSizeSampling(5, 2, seed=seed), 3000
    counts = Counter(tuple(sampling.draw(step).tolist()) for step in range(draws))
    expected = dict.fromkeys(itertools.permutations(range(5), 2), 1 / 20)
    check_frequencies(counts, expected, draws)


def test_shuffled_epochs_show_each_example_at_most_once() -> None:
    sampling = ShuffledSampling(11, 3, seed=4)
    epochs = [torch.cat([sampling.draw(3 * epoch + b) for b in range(3)]) for epoch in range(300)]
    assert all(len(set(epoch.tolist())) == 9 for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 300
    left = Counter(i for epoch in epochs for i in set(range(11)) - set(epoch.tolist()))
    check_frequencies(left, dict.fromkeys(range(11), 1 / 11), 600)
    again = ShuffledSampling(11, 3, seed=4)
    assert torch.equal(again.draw(5), sampling.draw(5))
    assert torch.equal(again.draw(1), epochs[0][3:6])


def test_a_seed_repeats_and_none_does_not() -> None:
    for make in (
        lambda seed: PoissonSampling(500, 0.5, seed=seed),
        lambda seed: FixedSizeSampling(500, 250, seed=seed),
        lambda seed: ShuffledSampling(500, 250, seed=seed),
    ):
        assert torch.equal(make(3).draw(7), make(3).draw(7))
        assert not torch.equal(make(3).draw(7), make(4).draw(7))
        assert not torch.equal(make(None).draw(7), make(None).draw(7))
    secure = PoissonSampling(500, 0.5)
    assert not torch.equal(secure.draw(7), secure.draw(7))


def test_indices_are_those_that_were_given() -> None:
    own = torch.tensor([40, 10, 30, 20])
    assert PoissonSampling(own, 1.0).draw(0).tolist() == [40, 10, 30, 20]
    assert sorted(FixedSizeSampling(own, 4).draw(0).tolist()) == [10, 20, 30, 40]
    assert sorted(ShuffledSampling(own, 4).draw(0).tolist()) == [10, 20, 30, 40]
    sampling = PoissonSampling(own, 1.0)
    own[0] = 0
    assert sampling.draw(0)[0] == 40


def test_a_mechanism_gets_the_batches_that_it_accounts_for() -> None:
    expected = {
        "poisson": (PoissonSampling, 5),
        "fixed_size": (FixedSizeSampling, 5),
        "shuffled": (ShuffledSampling, 5),
        "full_batch": (PoissonSampling, 40),
    }
    for name, (kind, size) in expected.items():
        mechanism = SampledGaussian(name, 40, size, 1.0)  # type: ignore[arg-type]
        sampling = sampling_of(mechanism, 40, seed=2)
        assert type(sampling) is kind
        mean = sum(len(sampling.draw(step)) for step in range(200)) / 200
        assert mean == pytest.approx(size, abs=1.0 if name == "poisson" else 0)
        with pytest.raises(SettingError, match="examples=39: the mechanism accounts for 40"):
            sampling_of(mechanism, torch.arange(39))


def test_bad_input_is_refused() -> None:
    cases: list[tuple[Any, str]] = [
        (lambda: PoissonSampling(5, 0.0), r"rate=0.0: a number in \(0, 1\] is needed"),
        (lambda: PoissonSampling(5, 1.5), r"rate=1.5: a number in \(0, 1\] is needed"),
        (lambda: PoissonSampling(0, 0.5), "examples=0: a whole number of at least 1"),
        (lambda: PoissonSampling(torch.zeros(3), 0.5), "int64 indices"),
        (lambda: PoissonSampling(5, 0.5, seed=-1), "seed=-1"),
        (lambda: FixedSizeSampling(5, 6), "batch_size=6: there are 5 examples"),
        (lambda: ShuffledSampling(5, 0), "batch_size=0"),
        (lambda: PoissonSampling(5, 0.5).draw(-1), "step=-1"),
        (lambda: FixedSizeSampling(5, 2).draw(-1), "step=-1"),
        (lambda: ShuffledSampling(5, 2).draw(-1), "step=-1"),
    ]
    for call, said in cases:
        with pytest.raises(SettingError, match=said):
            call()
