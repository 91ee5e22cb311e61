"""Every contestant takes the same gradient, floors count what they say, reports show it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from metalearn.benchmarks import (
    CONTESTANTS,
    WORKLOADS,
    Timing,
    available,
    contestants,
    curve,
    curve_figure,
    race,
    race_figure,
    race_table,
)
from metalearn.benchmarks.contestants import Contestant, Run
from metalearn.benchmarks.worker import errors
from metalearn.benchmarks.workloads import Workload
from metalearn.core import compiled
from metalearn.models import MLP, Conv4
from tests.support.oracles import assert_trees

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SMALL = Workload(
    "small", lambda: Conv4((1, 8, 8), 2, filters=3, pool="flatten"), (1, 8, 8), 2, 4, 4, 2, 2
)
WAVES = Workload("waves", lambda: MLP((1,), 1, hidden=(5,)), (1,), None, 4, 4, 2, 1)


@contextmanager
def compiled_quickly(contestant: Contestant) -> Iterator[None]:
    """XLA may leave out what makes a gradient fast: half of the time, and no part of its value."""
    if contestant.needs != "jax":
        yield
        return
    import jax

    name = "jax_disable_most_optimizations"
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, False)  # its default


@pytest.mark.parametrize(
    "name", [n for n, c in CONTESTANTS.items() if c.raced and n != "grad_vmap"]
)
@pytest.mark.parametrize("workload", [SMALL, WAVES], ids=["conv4", "mlp"])
def test_every_contestant_takes_the_same_gradient(
    name: str, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    contestant = CONTESTANTS[name]
    monkeypatch.setattr(contestants, "compiled", partial(compiled, compiler="aot_eager"))
    if not available(contestant):
        pytest.skip(f"{contestant.needs} is not installed")
    if contestant.compiles and workload.has_convolutions:
        pytest.skip("torch's compiler does not take the windows of the batched engine")
    reference = CONTESTANTS["loop" if contestant.second_order else "first_order_loop"]
    with warnings.catch_warnings(), compiled_quickly(contestant):
        warnings.simplefilter("ignore")
        grads = contestant.prepare(workload, torch.float64)()
    assert_trees(dict(grads), dict(reference.prepare(workload, torch.float64)()), 1e-10)


def test_the_recipe_outside_the_vmap_is_another_gradient_through_batch_norm() -> None:
    wrong, right = (
        CONTESTANTS[name].prepare(SMALL, torch.float64)() for name in ("grad_vmap", "loop")
    )
    gap = max(float((wrong[name] - g).abs().max()) for name, g in right.items())
    assert gap > 1e-6


def test_a_workload_is_the_same_at_every_call() -> None:
    first, second = SMALL.module(), SMALL.module()
    for a, b in zip(first.parameters(), second.parameters()):
        assert torch.equal(a, b)
    for a, b in zip(SMALL.batch().support, SMALL.batch().support):
        assert torch.equal(a, b)


@pytest.mark.parametrize("second_order", [True, False])
def test_the_floor_counts_matrix_products(
    second_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers, one step: 4 + 9 products (first order: 2 + 3), for the query 2 + 3."""
    shapes = []
    workload = replace(WAVES, make=lambda: MLP((1,), 1, hidden=(5,)), steps=1)
    run = workload.floor(second_order=second_order)
    monkeypatch.setattr(torch, "bmm", lambda a, b: shapes.append((a.shape, b.shape)))
    run()
    first, last = ((2, 4, 1), (2, 1, 5)), ((2, 4, 5), (2, 5, 1))
    counts = [sum(tuple(map(tuple, s)) == k for s in shapes) for k in (first, last)]
    assert counts == ([4 + 2, 9 + 3] if second_order else [2 + 2, 3 + 3])
    assert len(shapes) == sum(counts)


def test_a_race_reports_times_memory_and_errors() -> None:
    timings = race("sinusoid", ["vmap", "batched"], rounds=2, memory=True)
    assert [t.contestant for t in timings] == ["vmap", "batched"]
    for t in timings:
        assert t.milliseconds > 0 and t.floors > 1 and t.memory >= 0
        assert t.error < 1e-10 and t.rounding < 1e-3
    assert timings[0].ours > 0 and timings[1].ours == 1


def test_without_ours_in_the_race_nothing_is_compared_with_it() -> None:
    (alone,) = race("sinusoid", ["first_order_loop"], rounds=1)
    assert alone.milliseconds > 0 and math.isnan(alone.ours) and math.isnan(alone.memory)


def test_a_contestant_that_fails_is_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARALLEL_METALEARN", "/nowhere")
    (failed,) = race("sinusoid", ["parallel_metalearn"], rounds=1)
    assert math.isnan(failed.milliseconds) and math.isnan(failed.error)


def test_a_curve_has_a_point_for_each_number_of_steps() -> None:
    points = curve("sinusoid", ["batched"], [2, 1])["batched"]
    assert list(points) == [1, 2]
    assert all(point["seconds"] > 0 and point["memory"] >= 0 for point in points.values())


def test_a_task_is_the_same_alone_and_in_a_batch() -> None:
    both, second = SMALL.batch(), replace(SMALL, tasks=1, first=1).batch()
    for a, b in zip(both.support + both.query, second.support + second.query):
        assert torch.equal(a[1:], b)


def test_rounding_is_the_median_over_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One task of three moved by 1, in float32 alone, is not seen."""
    loop = CONTESTANTS["loop"]

    def prepare(workload: Workload, dtype: torch.dtype) -> Run:
        run = loop.prepare(workload, dtype)
        if dtype == torch.float64 or workload.first != 1:
            return run
        return lambda: {name: g + 1 for name, g in run().items()}

    monkeypatch.setitem(CONTESTANTS, "moved", replace(loop, prepare=prepare))
    found = errors(replace(WAVES, tasks=3), "moved")
    assert found["exact"] == 0 and 0 < found["rounding"] < 1e-5


def test_tables_and_figures_show_every_contestant() -> None:
    timings = [
        Timing("batched", 10.0, 1.5, 1.0, 1e-15, 1e-7, 2e6),
        Timing("grad_vmap", 20.0, 3.0, 2.1, 4e-3, 5e-3, math.nan),
        Timing("first_order", 5.0, 1.2, math.nan, 1e-15, 1e-7, 1e6),
        Timing("higher", *[math.nan] * 6),
    ]
    table = race_table({"W1": timings})
    assert "| reverse, batched | 10.00 | 1.50 | 1.00 | 2 | 1e-15 | 1e-07 |" in table
    assert "| first-order, batched | 5.00 | 1.20 |  | 1 |" in table
    assert "| higher | nan | nan |" in table
    assert "| torch.func grad(vmap) | 20 | 3.00 | 2.10 |  | 4e-03 | 5e-03 |" in table
    race = race_figure({"W1": timings, "W2": timings})
    axes = race.axes
    assert len(axes) == 2
    (legend,) = race.legends
    colours = [patch.get_facecolor() for patch in legend.get_patches()]
    assert len(set(colours)) == 3 and {p.get_facecolor() for p in axes[0].patches} <= set(colours)
    widths = [p.get_width() for p in axes[0].patches]
    assert widths == [1.2, 3.0, 1.5]  # second order above first, the fastest of each on top
    labels = [tick.get_text() for tick in axes[0].get_yticklabels()]
    assert set(labels) == {CONTESTANTS[t.contestant].title for t in timings[:-1]}
    assert any("wrong gradient" in text.get_text() for text in axes[0].texts)
    points = {1: {"memory": 1e6, "seconds": 0.1}, 10: {"memory": 5e6, "seconds": 1.0}}
    left, right = curve_figure("W2", {"batched": points, "mixed": points}).axes
    assert [line.get_ydata()[1] for line in left.lines] == [5.0, 5.0]
    assert [line.get_ydata()[1] for line in right.lines] == [1.0, 1.0]


def smallest_text(figure: Figure, width: int) -> float:
    """Of all texts of a figure, in pixels of a page that shows it so wide."""
    sizes = [
        text.get_fontsize()
        for text in figure.findobj(Text)
        if text.get_text() and text.get_visible()
    ]
    return min(sizes) / 72 * width / float(figure.get_size_inches()[0])


def test_figures_are_sorted_readable_and_tell_ours_from_others() -> None:
    names = ("higher", "batched", "mixed", "vmap_grad", "first_order", "grad_vmap")
    timings = [
        Timing(name, 50.0 - place, 3.0 - abs(place - 2), 1.0, 1e-15, 1e-7, 2e6)
        for place, name in enumerate(names)
    ]
    race = race_figure({"W1": timings})
    bars = race.axes[0].patches
    second = [bar.get_width() for bar in bars[1:]]
    assert second == sorted(second, reverse=True) and len(bars) == len(names)
    assert bars[1].get_y() - bars[0].get_y() > 1.5  # a gap between first order and second
    assert race.axes[0].get_xscale() == "linear"
    far = [replace(t, floors=floors) for t, floors in zip(timings, (1.5, 2.0, 80.0))]
    assert race_figure({"W1": far}).axes[0].get_xscale() == "log"
    points = {1: {"memory": 1e6, "seconds": 0.1}, 10: {"memory": 5e6, "seconds": 1.0}}
    curve = curve_figure("W2", dict.fromkeys(("batched", "vmap_grad", "mixed", "higher"), points))
    dashed = [line.get_linestyle() == "--" for line in curve.axes[0].lines]
    assert dashed == [False, True, False, True]
    colours = [line.get_color() for line in curve.axes[0].lines]
    assert colours[1] == colours[3] and len({*colours}) == 3
    for figure in (race, curve):
        assert smallest_text(figure, 830) >= 9


def test_the_published_workloads_are_those_of_the_readme() -> None:
    assert (WORKLOADS["W1"].tasks, WORKLOADS["W1"].steps, WORKLOADS["W1"].way) == (32, 1, 5)
    assert (WORKLOADS["W2"].tasks, WORKLOADS["W2"].steps, WORKLOADS["W2"].way) == (8, 5, 20)
