"""Races of the other suites: right answers, tables and figures that show them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from metalearn.benchmarks import (
    SUITES,
    clipped_networks,
    clipped_steps,
    derivatives,
    ensembles,
    per_sample,
)
from metalearn.data import digits_data

pytestmark = [pytest.mark.filterwarnings("ignore")]


def test_suites_say_what_they_measure() -> None:
    names = ["ensembles", "per_sample", "derivatives", "curvature", "uncertainty", "hyper"]
    assert list(SUITES) == [*names, "attribution"]
    assert all(suite.__doc__ for suite in SUITES.values())


def test_every_way_to_per_sample_gradients_gives_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    workloads = per_sample.SAMPLE_WORKLOADS
    for name, workload in workloads.items():
        monkeypatch.setitem(workloads, name, replace(workload, samples=4))
    results = {name: per_sample.sample_race(name, rounds=1) for name in workloads}
    for timings in results.values():
        errors = {t.way: t.error for t in timings}
        for way in {"vmap(grad)", "loop", "ours", "opacus", "BackPACK"} & set(errors):
            assert errors[way] < 1e-5, way
        assert all(t.milliseconds > 0 and t.plain > 0 for t in timings)
    table = per_sample.sample_table(results)
    assert table.count("\n") == 1 + len(results["mlp"])
    assert "| ours |" in table


def test_norms_take_about_the_memory_of_a_plain_step() -> None:
    """Bytes of tensors, which are the same in every run: the figure that README quotes."""
    peaks = per_sample.ghost_memory("conv4", (64, 256))
    for found in peaks.values():
        assert found["norms"] <= 1.1 * found["batch gradient"] < found["gradients"]
    assert "| conv4 without norms | 256 |" in per_sample.memory_table({"conv4": peaks})


def test_every_way_to_a_derivative_gives_the_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derivatives, "_LAYERS", ((4, 4), (20, 3), (3, 20)))
    timings = derivatives.derivative_race(rounds=1)
    assert all(t.error < 1e-5 for t in timings)
    chosen = [t.way for t in timings if t.way.startswith("jacobian")]
    assert chosen[1:] == ["jacobian (chose reverse)", "jacobian (chose forward)"]
    assert "| Hessian product, 512 | hvp, forward over reverse |" in derivatives.derivative_table(
        timings
    )


def test_stacked_networks_are_timed_beside_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(ensembles.ENSEMBLES["mlp"], sizes=(1, 3))
    monkeypatch.setitem(ensembles.ENSEMBLES, "mlp", small)
    timings = ensembles.ensemble_race("mlp", rounds=1)
    assert [t.members for t in timings] == [1, 3]
    assert timings[0].memory < timings[1].memory
    assert all(t.gain > 0 and set(t.ours) == {"batched", "looped"} for t in timings)
    table = ensembles.ensemble_table(timings)
    assert table.splitlines()[-1].startswith("| MLP 64-64-64-10 | 3 |")
    gains, memory = ensembles.ensemble_figure(timings).axes
    assert list(gains.lines[0].get_xdata()) == [1, 3] == list(memory.lines[0].get_xdata())


def test_a_sweep_is_timed_both_ways() -> None:
    sweep = ensembles.sweep_race(digits_data(seed=0), members=2, steps=2)
    assert (sweep.members, sweep.steps) == (2, 2)
    assert sweep.at_once > 0 and sweep.one_by_one > 0 and math.isfinite(sweep.one_by_one)


def test_every_way_to_a_clipped_gradient_gives_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    # opacus sets a flag of cudnn, which torch forbids once its own tests' tools are imported
    kept: Any = torch.backends.flags_frozen
    monkeypatch.setitem(kept.__globals__, "__allow_nonbracketed_mutation_flag", True)
    before = torch.backends.cudnn.deterministic
    results = {
        name: clipped_steps.clipped_race(name, rounds=1, samples=6)
        for name in clipped_networks.CLIPPED_NETWORKS
    }
    torch.backends.cudnn.deterministic = before
    for name, timings in results.items():
        ways = [t.way for t in timings]
        assert ways[:3] == ["plain gradient", "ours", "vmap(grad) and clip"]
        assert all(t.error < 1e-4 for t in timings[1:]), name
        assert all(t.milliseconds > 0 and t.memory > 0 for t in timings)
    assert "| ours |" in clipped_steps.clipped_table(results)
