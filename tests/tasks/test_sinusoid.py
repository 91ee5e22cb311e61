"""Sine waves: the formula, the ranges, the addresses."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from metalearn.errors import SettingError
from metalearn.tasks import SinusoidTasks
from metalearn.types import TaskDistribution
from tests.support.builders import assert_same
from tests.test_random_streams import plain_uniform

# Recorded once, to notice a drift of the tasks from one version to the next.
POINTS_X = [-3.8857414722442627, 0.644146203994751]
POINTS_Y = [0.15621936321258545, -0.017920730635523796]


def _plain(seed: int, split: str, index: int, count: int) -> list[tuple[float, float]]:
    """Points (x, y) of a task from an independent random stream, in plain Python."""
    draws = list(itertools.islice(plain_uniform(seed, split, index), 2 + count))
    amplitude, phase = 0.1 + 4.9 * draws[0], math.pi * draws[1]
    return [(x, amplitude * math.sin(x - phase)) for x in (-5 + 10 * u for u in draws[2:])]


def _wave(tasks: SinusoidTasks, index: int) -> tuple[float, float]:
    """Amplitude and phase of a task, solved from its points: y = a·sin x − b·cos x."""
    (x, y), _ = tasks.sample("train", [index])
    x, y = x[0].double(), y[0].double()
    a, b = torch.linalg.lstsq(torch.cat([x.sin(), -x.cos()], 1), y).solution.flatten().tolist()
    return math.hypot(a, b), math.atan2(b, a)


def test_shapes_and_types() -> None:
    tasks = SinusoidTasks(shot=3, query=7)
    assert isinstance(tasks, TaskDistribution)
    assert (tasks.kind, tasks.input_shape, tasks.outputs) == ("regression", (1,), 1)
    for (x, y), count in zip(tasks.sample("test", [4, 9]), (3, 7)):
        assert x.shape == y.shape == (2, count, 1)
        assert x.dtype == y.dtype == torch.float32


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_equals_the_formula(split: Any) -> None:
    (x, y), (qx, qy) = SinusoidTasks(shot=4, query=6, seed=11).sample(split, [0, 123])
    for row, index in enumerate((0, 123)):
        points = torch.tensor(_plain(11, split, index, 10), dtype=torch.float64)
        drawn = torch.cat([torch.cat([x, y], -1), torch.cat([qx, qy], -1)], 1)[row].double()
        torch.testing.assert_close(drawn, points, rtol=1e-6, atol=1e-6)


def test_points_never_change() -> None:
    (x, y), _ = SinusoidTasks(shot=2, query=1).sample("train", [0])
    torch.testing.assert_close(x.flatten(), torch.tensor(POINTS_X), rtol=1e-6, atol=0)
    torch.testing.assert_close(y.flatten(), torch.tensor(POINTS_Y), rtol=1e-6, atol=0)


def test_amplitude_phase_and_x_cover_their_ranges() -> None:
    tasks = SinusoidTasks(shot=20, query=1)
    waves = torch.tensor([_wave(tasks, i) for i in range(400)])
    for values, low, high in ((waves[:, 0], 0.1, 5.0), (waves[:, 1], 0.0, math.pi)):
        width = high - low
        assert low - 1e-3 <= values.min() < low + 0.02 * width
        assert high - 0.02 * width < values.max() <= high + 1e-3
        assert abs(values.mean() - (low + high) / 2) < 5 * width / math.sqrt(12 * 400)
    x = tasks.sample("train", range(400)).support[0]
    assert -5 <= x.min() < -4.98 and 4.98 < x.max() <= 5
    assert abs(x.mean()) < 5 * 10 / math.sqrt(12 * 8000)


def test_the_same_task_in_any_batch() -> None:
    tasks = SinusoidTasks()
    batch, back = tasks.sample("train", [0, 1, 2]), tasks.sample("train", [2, 1, 0])
    alone = SinusoidTasks().sample("train", [1])
    for many, reverse, one in zip(batch, back, alone):
        for a, b, c in zip(many, reverse, one):
            assert torch.equal(a[1], c[0]) and torch.equal(a, b.flip(0))


def test_more_points_of_a_task_lie_on_the_same_wave() -> None:
    few, many = SinusoidTasks(shot=2, query=3), SinusoidTasks(shot=4, query=3)
    assert torch.equal(
        few.sample("test", [5]).support[0], many.sample("test", [5]).support[0][:, :2]
    )


def test_seeds_splits_and_indices_differ() -> None:
    first = [
        SinusoidTasks(seed=seed).sample(split, [index]).support[1][0, 0].item()
        for seed in (0, 1)
        for split in ("train", "validation", "test")
        for index in (0, 1)
    ]
    assert len(set(first)) == 12


def test_indices_may_be_any_sequence() -> None:
    tasks = SinusoidTasks()
    expected = tasks.sample("train", [3, 4])
    assert_same(tasks.sample("train", range(3, 5)), expected)
    assert_same(tasks.sample("train", torch.tensor([3, 4])), expected)  # type: ignore[arg-type]


def test_the_device_is_kept() -> None:
    batch = SinusoidTasks().sample("train", [0], device="meta")
    assert {t.device.type for part in batch for t in part} == {"meta"}


@pytest.mark.parametrize("name", ["shot", "query"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_sizes_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=rf"^{name}=.*: a whole number of at least 1 is needed"):
        SinusoidTasks(**{name: value})


def test_what_cannot_be_sampled() -> None:
    with pytest.raises(SettingError, match="split='val': one of train, validation, test"):
        SinusoidTasks().sample("val", [0])  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="at least one task index is needed"):
        SinusoidTasks().sample("train", [])
    with pytest.raises(SettingError, match="index=-1: a whole number"):
        SinusoidTasks().sample("train", [-1])


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5])
def test_a_seed_out_of_range_is_refused_before_any_task_is_drawn(seed: Any) -> None:
    with pytest.raises(SettingError, match="^seed="):
        SinusoidTasks(seed=seed)


def test_the_curve_of_a_task_is_its_own_wave() -> None:
    """The points of a task lie on it, and two numbers, of a grid, give it."""
    tasks = SinusoidTasks(shot=5, query=50, seed=3)
    _, (x, y) = tasks.sample("validation", [4])
    grid, wave = tasks.curve("validation", 4)
    assert grid.shape == wave.shape == (400, 1)
    found = np.interp(x.flatten().numpy(), grid.flatten().numpy(), wave.flatten().numpy())
    np.testing.assert_allclose(found, y.flatten().numpy(), atol=2e-3)
