"""Every contestant takes the same gradient, floors count what they say, reports show it."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch

from metalearn.benchmarks import (
    CONTESTANTS,
    WORKLOADS,
    Timing,
    available,
    curve_figure,
    race,
    race_figure,
    race_table,
)
from metalearn.benchmarks.workloads import Workload
from metalearn.models import MLP, Conv4
from tests.oracles import assert_trees

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SMALL = Workload(
    "small", lambda: Conv4((1, 8, 8), 2, filters=3, pool="flatten"), (1, 8, 8), 2, 4, 4, 2, 2
)
WAVES = Workload("waves", lambda: MLP((1,), 1, hidden=(5,)), (1,), None, 4, 4, 2, 1)


@pytest.mark.parametrize("name", [n for n in CONTESTANTS if n != "grad_vmap"])
@pytest.mark.parametrize("workload", [SMALL, WAVES], ids=["conv4", "mlp"])
def test_every_contestant_takes_the_same_gradient(name: str, workload: Workload) -> None:
    contestant = CONTESTANTS[name]
    if not available(contestant):
        pytest.skip(f"{contestant.needs} is not installed")
    reference = CONTESTANTS["loop" if contestant.second_order else "first_order_loop"]
    with warnings.catch_warnings():
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


def test_a_race_reports_positive_times_and_small_errors() -> None:
    timings = race(SMALL, ["batched", "first_order"], rounds=1)
    assert [t.contestant for t in timings] == ["batched", "first_order"]
    for t in timings:
        assert (
            t.milliseconds > 0
            and t.floors > 0
            and t.error < 1e-10
            and t.rounding < 1e-3
            and math.isnan(t.memory)
        )


def test_tables_and_figures_show_every_contestant() -> None:
    timings = [
        Timing("batched", 10.0, 1.5, 1e-15, 1e-7, 2e6),
        Timing("grad_vmap", 20.0, 3.0, 4e-3, 5e-3, math.nan),
        Timing("first_order", 5.0, 1.2, 1e-15, 1e-7, 1e6),
    ]
    table = race_table({"W1": timings})
    assert "| reverse, batched | 10.00 | 1.50 | 1.00 | 2 | 1e-15 | 1e-07 |" in table
    assert "| torch.func grad(vmap) | 20 | 3.00 | 2.00 |  | 4e-03 | 5e-03 |" in table
    axes = race_figure({"W1": timings, "W2": timings}).axes
    assert len(axes) == 2
    labels = [tick.get_text() for tick in axes[0].get_yticklabels()]
    assert set(labels) == {CONTESTANTS[t.contestant].title for t in timings}
    assert any("wrong gradient" in text.get_text() for text in axes[0].texts)
    points = {1: {"memory": 1e6, "seconds": 0.1}, 10: {"memory": 5e6, "seconds": 1.0}}
    left, right = curve_figure("W2", {"batched": points, "mixed": points}).axes
    assert [line.get_ydata()[1] for line in left.lines] == [5.0, 5.0]
    assert [line.get_ydata()[1] for line in right.lines] == [1.0, 1.0]


def test_the_published_workloads_are_those_of_the_readme() -> None:
    assert (WORKLOADS["W1"].tasks, WORKLOADS["W1"].steps, WORKLOADS["W1"].way) == (32, 1, 5)
    assert (WORKLOADS["W2"].tasks, WORKLOADS["W2"].steps, WORKLOADS["W2"].way) == (8, 5, 20)
