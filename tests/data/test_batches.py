"""The order of batches: epochs, members, resamples, and that nothing but (seed, step) matters."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from metalearn.data import MemberBatches
from metalearn.errors import SettingError

# Recorded once, to notice a drift of the order from one version to the next.
KNOWN = [16, 10, 17, 4, 11, 1, 15, 9, 3, 18, 14, 12, 6, 7, 5, 13, 2, 0, 19, 8]


def epoch(batches: MemberBatches, number: int) -> torch.Tensor:
    """All batches of an epoch, ``[..., batches · B]``."""
    each = batches.batches_per_epoch
    steps = range(number * each, (number + 1) * each)
    return torch.cat([batches.indices(step) for step in steps], dim=-1)


def test_an_epoch_visits_each_sample_once_in_a_new_order() -> None:
    samples = torch.tensor([3, 14, 15, 92, 65, 35, 89, 79])
    batches = MemberBatches(samples, batch_size=4, seeds=[0, 1])
    orders = [epoch(batches, number) for number in range(3)]
    for order in orders:
        assert order.shape == (2, 8) and order.dtype == torch.int64
        for row in order:
            assert sorted(row.tolist()) == sorted(samples.tolist())
    distinct = {tuple(row.tolist()) for order in orders for row in order}
    assert len(distinct) == 6


@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize("seeds", [[0, 1], [4, 4]])
def test_counts_are_those_of_an_epoch(bootstrap: bool, seeds: list[int]) -> None:
    samples = torch.tensor([3, 14, 15, 92, 65, 35, 89, 79])
    batches = MemberBatches(samples, batch_size=4, seeds=seeds, bootstrap=bootstrap)
    for member in range(2):
        rows = epoch(batches, 3).expand(2, 8)
        seen = Counter(rows[member].tolist())
        assert batches.counts(member).tolist() == [seen[sample] for sample in samples.tolist()]


def test_the_incomplete_batch_is_left_out_and_differs_by_epoch() -> None:
    batches = MemberBatches(11, batch_size=4, seeds=[5])
    assert batches.batches_per_epoch == 2
    left = [set(range(11)) - set(epoch(batches, number).tolist()) for number in range(40)]
    assert all(len(out) == 3 for out in left)
    assert set().union(*left) == set(range(11))


def test_a_step_is_a_pure_function() -> None:
    """Asked backwards, twice, by another object: the same batches; what is handed out is theirs."""
    one = MemberBatches(10, batch_size=3, seeds=[7, 8], bootstrap=True)
    forward = [one.indices(step) for step in range(12)]
    other = MemberBatches(10, batch_size=3, seeds=[7, 8], bootstrap=True)
    for step in (*reversed(range(12)), 0, 5):
        handed = other.indices(step)
        assert torch.equal(handed, forward[step])
        handed.zero_()


def test_the_order_is_that_of_the_documented_stream() -> None:
    """Sorting the upper bits of the raw words, by a plain sort of pairs."""
    raw = np.random.Philox(key=[6, (2 * 16 + 1) * 4 + 3]).random_raw(20)
    expected = [n for _, n in sorted((int(word) >> 5, n) for n, word in enumerate(raw))]
    assert epoch(MemberBatches(20, batch_size=10, seeds=[6]), 2).tolist() == expected
    assert expected == KNOWN


@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_run_alone_sees_the_batches_of_its_member(bootstrap: bool, shuffle: bool) -> None:
    seeds, samples = [4, 9, 4, 2**64 - 1], torch.arange(100, 150)
    options: dict[str, Any] = {"batch_size": 8, "bootstrap": bootstrap, "shuffle": shuffle}
    together = MemberBatches(samples, seeds=seeds, **options)
    for member, seed in enumerate(seeds):
        alone = MemberBatches(samples, seeds=[seed], **options)
        for step in (0, 5, 6, 47, 1000):
            batch = together.indices(step)
            assert alone.indices(step).shape == (8,)
            row = batch if together.shared else batch[member]
            assert torch.equal(row, alone.indices(step))


def test_members_are_shared_only_where_they_see_the_same() -> None:
    assert MemberBatches(9, batch_size=2, seeds=[3, 3, 3]).indices(1).shape == (2,)
    assert MemberBatches(9, batch_size=2, seeds=[3, 3], bootstrap=True).indices(1).shape == (2,)
    assert MemberBatches(9, batch_size=2, seeds=[3, 4]).indices(1).shape == (2, 2)
    plain = MemberBatches(9, batch_size=2, seeds=[3, 4], shuffle=False)
    assert plain.shared and plain.indices(3).tolist() == [6, 7] == plain.indices(7).tolist()
    drawn = MemberBatches(9, batch_size=2, seeds=[3, 4], shuffle=False, bootstrap=True)
    assert not drawn.shared and drawn.indices(0).shape == (2, 2)


def test_resamples_stay_fixed_over_the_run() -> None:
    batches = MemberBatches(40, batch_size=10, seeds=[1, 2, 3], bootstrap=True)
    for member in range(3):
        bags = [Counter(epoch(batches, number)[member].tolist()) for number in range(4)]
        assert bags[0] == bags[1] == bags[2] == bags[3]
        assert max(bags[0].values()) > 1
    assert len({tuple(sorted(row.tolist())) for row in epoch(batches, 0)}) == 3


def test_a_resample_has_the_distinct_samples_that_chance_leaves() -> None:
    """1 − (1 − 1/N)^N of the samples, about 63.2 %, and Poisson-like multiplicities."""
    count, members = 1000, 64
    bags = epoch(
        MemberBatches(count, batch_size=count, seeds=range(members), bootstrap=True), 0
    ).numpy()
    shares = [len(set(row)) / count for row in bags]
    expected = 1 - (1 - 1 / count) ** count
    deviation = math.sqrt((math.exp(-1) * (1 - 2 * math.exp(-1))) / count)
    assert abs(np.mean(shares) - expected) < 5 * deviation / math.sqrt(members)
    assert np.std(shares) == pytest.approx(deviation, rel=0.5)
    times = np.stack([np.bincount(row, minlength=count) for row in bags])
    assert times.var() == pytest.approx(1 - 1 / count, rel=0.05)
    assert abs(times.sum(0) - members).max() < 6 * math.sqrt(members)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 11}, "batch_size=11: the training part has 10 samples, so at most as many"),
        ({"batch_size": 0}, "batch_size=0: a whole number of at least 1 is needed"),
        ({"seeds": []}, r"seeds=\[\]: at least one seed is needed, one a member"),
        ({"seeds": [0, -1]}, "seed=-1: a whole number"),
        ({"samples": 0}, "samples=0: a whole number of at least 1 is needed"),
        ({"samples": torch.zeros(3)}, r"samples='torch.float32 \[3\]': a number of samples, or"),
        ({"samples": torch.zeros(0, dtype=torch.int64)}, r"samples='torch.int64 \[0\]'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        MemberBatches(**({"samples": 10, "batch_size": 2, "seeds": [0]} | settings))


@pytest.mark.parametrize("step", [-1, 1.5, True])
def test_bad_steps(step: Any) -> None:
    with pytest.raises(SettingError, match=r"step=.*: a whole number of at least 0 is needed"):
        MemberBatches(10, batch_size=2, seeds=[0]).indices(step)
