"""What ranks tell each other in a step: counts that stay whole, and as few messages as can be."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from metalearn.ranks import OneRank
from metalearn.ranks.processes import messages_of
from metalearn.trainers.loop.reduction import _digits, _numbers, reduced
from metalearn.trainers.loop.step import StepGradient
from tests.support.rank_threads import ThreadRanks, on_ranks


class Told(OneRank):
    """Two ranks of which the other does what this one does; keeps what a meeting was given."""

    count = 2

    def sums(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.values = dict(values)
        return {name: 2 * value for name, value in values.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 1_000_003, 2**24 - 1])
def test_counts_are_whole_after_the_sum_of_many_ranks(count: int, dtype: torch.dtype) -> None:
    ranks = 4096
    sums = torch.zeros(4, dtype=dtype)
    for _ in range(ranks):  # one after another, as a ring adds
        sums += _digits(count, 7).to(dtype)
    assert _numbers(sums) == [ranks * count, ranks * 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_is_one_message(dtype: torch.dtype) -> None:
    grads = {name: torch.randn(3, 4, dtype=dtype) for name in ("a", "b")}
    buffers = {"mean": torch.zeros(2, dtype=dtype)}
    gradient = StepGradient(grads, torch.ones(1, dtype=dtype), 5, buffers=buffers, processed=10)
    told = Told()
    found = reduced(gradient, told)
    assert len(list(messages_of(told.values))) == 1
    assert (found.count, found.processed) == (10, 20)


def test_records_lose_no_digit_and_do_not_overflow() -> None:
    scalars = {"whole": torch.tensor(2**24 + 1), "large": torch.tensor(1e37)}
    gradient = StepGradient({"a": torch.ones(1)}, torch.ones(1), 100, scalars=scalars)
    found = reduced(gradient, Told()).scalars
    assert float(found["whole"]) == 2**24 + 1
    assert float(found["large"]) == float(torch.tensor(1e37))


def test_on_a_card_counts_stay_on_the_processor() -> None:
    """Else the host would wait for the step to read them."""
    gradient = StepGradient({"a": torch.ones(3, device="meta")}, torch.ones(1, device="meta"), 5)
    told = Told()
    reduced(gradient, told)
    assert told.values["sizes"].device.type == "cpu"
    assert told.values["sizes"].dtype == torch.float64


def test_ranks_of_uneven_parts_have_the_counts_of_all() -> None:
    def step(ranks: ThreadRanks) -> tuple[int, int | None, list[float]]:
        count = ranks.rank  # the first has nothing
        part = StepGradient({"a": torch.full((2,), float(count))}, torch.ones(1), count)
        found = reduced(part, ranks)
        return found.count, found.processed, found.grads["a"].tolist()

    assert on_ranks(3, step) == [(3, 3, [3.0, 3.0])] * 3
