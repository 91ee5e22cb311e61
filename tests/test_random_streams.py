"""The stream of an address: equal everywhere, uniform, and a fair shuffle."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from metalearn.errors import SettingError
from metalearn.random_streams import (
    AddressedStream,
    SecureStream,
    check_split,
    uniform_of_each,
)

WORD = 2**64 - 1

# Recorded once, to notice a drift of the tasks from one version to the next.
FIRST = [0.011546754286331562, 0.24154919656271812, 0.11142585551493822]
SHUFFLED = [1, 24, 12, 57, 52, 31, 94, 98]


def philox(seed: int, second: int) -> Iterator[int]:
    """Philox4x64-10 from its paper (Salmon et al., SC 2011), counter from 1, in plain integers."""
    for counter in itertools.count(1):
        words, keys = [counter, 0, 0, 0], [seed, second]
        for _ in range(10):
            a, b = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
            words = [
                (b >> 64) ^ words[1] ^ keys[0],
                b & WORD,
                (a >> 64) ^ words[3] ^ keys[1],
                a & WORD,
            ]
            keys = [(keys[0] + 0x9E3779B97F4A7C15) & WORD, (keys[1] + 0xBB67AE8584CAA73B) & WORD]
        yield from words


def plain_uniform(seed: int, split: str, index: int) -> Iterator[float]:
    """The documented stream: key (seed, 4·index + split), the upper 53 bits of each word."""
    number = ("train", "validation", "test").index(split)
    return ((word >> 11) / 2**53 for word in philox(seed, 4 * index + number))


def plain_shuffle(draws: Iterator[float], population: int, count: int) -> list[int]:
    """Fisher and Yates on a list that is really there."""
    items = list(range(population))
    for i in range(count):
        j = i + int(next(draws) * (population - i))
        items[i], items[j] = items[j], items[i]
    return items[:count]


def assert_fair(counts: Any, cells: int) -> None:
    """Chi-square of equal cells, within six standard deviations of its expectation."""
    counts = list(counts) + [0] * (cells - len(counts))
    expected = sum(counts) / cells
    chi = sum((c - expected) ** 2 / expected for c in counts)
    assert chi < cells - 1 + 6 * math.sqrt(2 * (cells - 1)), counts


ADDRESSES = [
    (0, "train", 0), (7, "validation", 3), (1, "train", 10**9), (WORD, "test", 2**62 - 1),
    (WORD, "train", 0), (2**63 + 1, "test", 1), (5, "test", 2**62 - 1),
]  # fmt: skip


@pytest.mark.parametrize(("seed", "split", "index"), ADDRESSES)
def test_equals_an_independent_philox(seed: int, split: Any, index: int) -> None:
    expected = list(itertools.islice(plain_uniform(seed, split, index), 11))
    assert AddressedStream(seed, split, index).uniform(11).tolist() == expected


def test_the_first_draws_never_change() -> None:
    draws = AddressedStream(0, "train", 0).uniform(3)
    assert draws.dtype == np.float64
    assert draws.tolist() == FIRST
    assert AddressedStream(0, "train", 0).without_replacement(100, 8) == SHUFFLED


def test_draws_in_parts_equal_draws_at_once() -> None:
    parts, whole = AddressedStream(3, "test", 5), AddressedStream(3, "test", 5)
    taken = np.concatenate([parts.uniform(n) for n in (1, 0, 4, 2)])
    assert taken.tolist() == whole.uniform(7).tolist()


def test_every_part_of_an_address_counts() -> None:
    near = [
        (seed, split, index)
        for seed in (0, 1, 2, 4, 8)
        for split in ("train", "validation", "test")
        for index in (0, 1, 2, 4, 8)
    ]
    first = {AddressedStream(*address).uniform(1)[0] for address in near}  # type: ignore[arg-type]
    assert len(first) == len(near)


def test_uniform_lies_in_the_unit_interval_and_is_even() -> None:
    draws = AddressedStream(0, "train", 1).uniform(20_000)
    assert draws.shape == (20_000,)
    assert draws.min() >= 0 and draws.max() < 1
    assert ((draws * 2**53) % 1 == 0).all()
    assert_fair(np.bincount((draws * 50).astype(int), minlength=50), 50)


def test_neighbouring_addresses_are_unrelated() -> None:
    draws = np.stack([AddressedStream(0, "train", i).uniform(2) for i in range(3000)])
    assert_fair(np.bincount((draws[:, 0] * 20).astype(int), minlength=20), 20)
    for a, b in ((draws[:-1, 0], draws[1:, 0]), (draws[:, 0], draws[:, 1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(3000)


@pytest.mark.parametrize(("population", "count"), [(1, 1), (5, 5), (30, 7), (1000, 3), (40, 40)])
def test_distinct_is_a_partial_shuffle(population: int, count: int) -> None:
    drawn = AddressedStream(2, "test", 9).without_replacement(population, count)
    assert drawn == plain_shuffle(plain_uniform(2, "test", 9), population, count)
    assert len(set(drawn)) == count
    assert all(0 <= d < population for d in drawn)


@pytest.mark.parametrize("population", [1, 2, 17, 300])
def test_drawing_all_is_a_permutation(population: int) -> None:
    for index in range(10):
        drawn = AddressedStream(0, "train", index).without_replacement(population, population)
        assert sorted(drawn) == list(range(population))


def test_every_order_is_equally_likely() -> None:
    orders = Counter(
        tuple(AddressedStream(5, "train", i).without_replacement(4, 4)) for i in range(4800)
    )
    assert_fair(orders.values(), math.factorial(4))


def test_every_subset_is_equally_likely() -> None:
    drawn = (AddressedStream(6, "test", i).without_replacement(6, 3) for i in range(4000))
    assert_fair(Counter(frozenset(d) for d in drawn).values(), math.comb(6, 3))


def test_uses_and_epochs_do_not_share_a_stream() -> None:
    uses: tuple[Any, ...] = ("train", "test", "division", "order", "bootstrap", "augmentation")
    first = {AddressedStream(3, use, i).uniform(1)[0] for use in uses for i in range(4)}
    assert len(first) == len(uses) * 4
    with pytest.raises(SettingError, match=r"index=288230376151711744: a whole number in 0..2\^58"):
        AddressedStream(0, "order", 2**58)


@pytest.mark.parametrize("population", [0, 1, 2, 3, 4, 5, 64, 65, 1000])
def test_a_permutation_has_every_number(population: int) -> None:
    for index in range(5):
        drawn = AddressedStream(0, "order", index).permutation(population)
        assert sorted(drawn.tolist()) == list(range(population))


def test_every_permutation_is_equally_likely() -> None:
    streams = (AddressedStream(1, "order", i) for i in range(4800))
    assert_fair(Counter(tuple(s.permutation(4).tolist()) for s in streams).values(), 24)


def test_repeated_draws_are_even_and_within() -> None:
    drawn = AddressedStream(0, "bootstrap", 0).with_replacement(7, 7000)
    assert drawn.dtype == np.int64 and drawn.min() == 0 and drawn.max() == 6
    assert_fair(np.bincount(drawn), 7)


def test_nothing_drawn_is_an_empty_list() -> None:
    assert AddressedStream(0, "train", 0).without_replacement(5, 0) == []


@pytest.mark.parametrize(
    ("seed", "index", "message"),
    [
        (-1, 0, r"seed=-1: a whole number in 0\.\.2\^64-1 is needed"),
        (2**64, 0, r"seed=18446744073709551616: a whole number"),
        (1.5, 0, r"seed=1\.5: a whole number"),
        (True, 0, r"seed=True: a whole number"),
        (0, -1, r"index=-1: a whole number in 0\.\.2\^62-1 is needed"),
        (0, 2**62, r"index=4611686018427387904: a whole number"),
        (0, 0.5, r"index=0\.5: a whole number"),
    ],
)
def test_addresses_out_of_range_are_refused(seed: Any, index: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        AddressedStream(seed, "train", index)


@pytest.mark.parametrize("split", ["val", "Train", "", "train "])
def test_unknown_splits_are_refused(split: Any) -> None:
    message = rf"split='{split}': one of train, validation, test is needed"
    with pytest.raises(SettingError, match=message):
        check_split(split)
    with pytest.raises(SettingError, match=message):
        AddressedStream(0, split, 0)


def test_the_global_generators_are_left_alone() -> None:
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    AddressedStream(0, "train", 0).without_replacement(100, 50)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


# --- of nobody ------------------------------------------------------------------------------------


def test_secure_words_are_uniform_and_never_the_same() -> None:
    one, other = (SecureStream().words(20_000) for _ in range(2))
    assert not np.array_equal(one, other)
    bits = np.unpackbits(one.view(np.uint8)).reshape(20_000, 64)
    assert np.abs(bits.mean(0) - 0.5).max() < 7 * 0.5 / math.sqrt(20_000)
    drawn = SecureStream().with_replacement(10, 20_000)
    assert_fair(Counter(drawn.tolist()).values(), 10)
    assert sorted(SecureStream().permutation(50).tolist()) == list(range(50))
    assert SecureStream().words(0).shape == (0,)


@pytest.mark.parametrize("place", ["train", "test", "affine"])
@pytest.mark.parametrize(("addresses", "count"), [(1, 3), (7, 9), (8, 1), (20, 130), (40, 22)])
@pytest.mark.parametrize("seed", [0, 2**63, WORD])
def test_draws_of_many_addresses_are_those_of_each(
    place: Any, addresses: int, count: int, seed: int
) -> None:
    indices = [3 * i for i in range(addresses - 1)] + [2**58 - 1]
    found = uniform_of_each(seed, place, indices, count)
    wanted = [AddressedStream(seed, place, index).uniform(count) for index in indices]
    assert found.shape == (addresses, count) and found.dtype == np.float64
    assert np.array_equal(found, wanted)


def test_words_of_many_addresses_are_those_of_the_paper() -> None:
    found = uniform_of_each(5, "validation", range(10), 11)
    for index, row in enumerate(found):
        assert list(row) == list(itertools.islice(plain_uniform(5, "validation", index), 11))


def test_addresses_that_are_none_are_refused() -> None:
    for indices in ([-1], [*range(20), 2**62]):
        with pytest.raises(SettingError, match="^index="):
            uniform_of_each(0, "train", indices, 2)
    unknown: Any = "holdout"
    with pytest.raises(SettingError, match="^split='holdout'"):
        uniform_of_each(0, unknown, range(20), 2)
    with pytest.raises(SettingError, match="^seed=-1"):
        uniform_of_each(-1, "train", range(20), 2)
