"""What a walk through a run keeps: states by the root of its length, numbers in few tensors."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from metalearn.core import HyperProgress, hyper_gradient, sgd
from metalearn.core.meta.step_series import StepSeries


def live_tensors(steps: int, method: str = "mixed") -> int:
    """How many there are at the end of the way back, those of before it apart."""
    counts: list[int] = []

    def count() -> int:
        gc.collect()  # what tests before this one left is not freed in between
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    def told(progress: HyperProgress) -> None:
        if progress.step in (0, steps):
            counts.append(count())

    def inner(p: Tensor, h: Tensor, b: Tensor) -> Tensor:
        return (h * (p - b).square()).sum()

    hyper_gradient(
        inner, lambda p, h, b: p.square(), torch.ones(2), torch.ones(2),
        lambda k: torch.tensor(float(k)), None, optimizer=sgd(0.1), steps=steps,
        method=method, progress=told,
    )  # fmt: skip
    return max(counts) - counts[0]


def test_tensors_do_not_pile_up_by_the_step() -> None:
    few, many = live_tensors(50), live_tensors(800)  # the root is four times as large
    assert few < many < 4 * few + 150  # of 128 values that wait to be packed


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("steps", [1, 128, 300])
def test_a_series_is_its_values_stacked(shape: tuple[int, ...], steps: int) -> None:
    values = [torch.full(shape, float(k)) for k in range(steps)]
    series = StepSeries()
    for value in values[: steps // 2]:
        series.append(value)
    again = StepSeries(series.parts())
    for value in values[steps // 2 :]:
        again.append(value)
    assert torch.equal(again.stacked(), torch.stack(values, -1))
    assert len(series.parts()) <= 2


def test_a_series_does_not_hold_on_to_what_its_values_are_views_of() -> None:
    series = StepSeries()
    for _ in range(128):
        series.append(torch.zeros(1000)[0])
    assert sum(part.untyped_storage().nbytes() for part in series.parts()) == 128 * 4


def test_a_series_inside_vmap() -> None:
    def squares(x: Tensor) -> Tensor:
        series = StepSeries()
        for k in range(130):
            series.append(x**2 + k)
        return series.stacked()

    found = torch.vmap(squares)(torch.arange(3.0))
    assert torch.equal(found, torch.arange(3.0)[:, None] ** 2 + torch.arange(130.0))
