"""Trainings that ranks share, timed: processes come to an end, the table says what counts."""

from __future__ import annotations

import pytest

from metalearn.benchmarks.shared_trainings import (
    LAYOUTS,
    TRAININGS,
    SharedTiming,
    shared_race,
    shared_table,
)
from tests.support.rank_threads import ThreadRanks, on_ranks


@pytest.mark.parametrize("name", TRAININGS)
def test_every_training_can_be_shared(name: str) -> None:
    def step(ranks: ThreadRanks) -> int:
        return ranks.made(TRAININGS[name][1], steps=2, progress=False).gradient(0).count

    assert len(set(on_ranks(2, step))) == 1


def test_a_race_has_every_layout_and_what_the_machine_allows() -> None:
    (timing,) = shared_race(["members_mlp"], rounds=1)
    assert set(timing.milliseconds) == set(LAYOUTS)
    ratios = timing.efficiency, timing.machine, timing.gain
    assert all(value > 0 for value in (*timing.milliseconds.values(), *ratios))
    assert timing.sent == 0  # members exchange nothing in a step


def test_the_table_says_what_a_step_sends() -> None:
    times = dict.fromkeys(LAYOUTS, 12.5)
    row = shared_table([SharedTiming("W1", times, 0.8, 0.9, 1.1, 0.1, 449_000.0)]).splitlines()[-1]
    assert row.endswith("| 0.80 | 0.90 | 1.10 | 10%, 449 kB |")
    assert row.count("12.50") == len(LAYOUTS)
