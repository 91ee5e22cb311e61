"""Races of the other suites: right answers, tables and figures that show them."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metalearn.benchmarks import (
    SUITES,
    clipped_networks,
    clipped_steps,
    clipping_costs,
    derivatives,
    ensembles,
    peers,
    per_sample,
    sweep,
)
from metalearn.benchmarks.workloads import WORKLOADS
from metalearn.core import compiled
from metalearn.data import digits_data
from metalearn.models import Conv4
from metalearn.trainers import EnsembleTrainer
from tests.support import oracles

pytestmark = [pytest.mark.filterwarnings("ignore")]


def test_suites_say_what_they_measure() -> None:
    names = ["ensembles", "per_sample", "derivatives", "curvature", "uncertainty", "hyper"]
    assert list(SUITES) == [*names, "attribution", "ranks", "scaling"]
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
    monkeypatch.setattr(derivatives, "compiled", partial(compiled, compiler="aot_eager"))
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
    monkeypatch.setattr(ensembles, "compiled", partial(compiled, compiler="aot_eager"))
    timings = ensembles.ensemble_race("mlp", rounds=1)
    assert [t.members for t in timings] == [1, 3]
    assert timings[0].memory < timings[1].memory
    ways = {"batched", "looped", "compiled", "all compiled"}
    assert all(t.gain > 0 and set(t.ours) == ways for t in timings)
    assert all((t.jax_ratio > 0) == peers.installed("jax") for t in timings)
    table = ensembles.ensemble_table(timings)
    assert table.splitlines()[-1].startswith("| MLP 64-64-64-10 | 3 |")
    gains, memory = ensembles.ensemble_figure(timings).axes
    assert list(gains.lines[0].get_xdata()) == [1, 3] == list(memory.lines[0].get_xdata())


def test_a_step_in_jax_is_that_of_the_loop() -> None:
    pytest.importorskip("jax")
    from metalearn.benchmarks import jax_ensembles

    networks = [ensembles.ENSEMBLES["mlp"].make(seed) for seed in range(2)]
    x, y = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    step, state = jax_ensembles.prepare(networks, x, y, lr=1e-2)
    for _ in range(3):
        step()
    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-2) for network in networks]
    for network, optimizer in zip(networks, optimizers):
        for _ in range(3):
            optimizer.zero_grad()
            torch.autograd.backward(torch.nn.functional.cross_entropy(network(x), y))
            optimizer.step()
        own = dict(network.named_parameters())
    for name, rows in state[0].items():
        found = torch.from_numpy(np.array(rows))[1]
        torch.testing.assert_close(found, own[name].detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 2, 1, dilation=2),
        nn.Conv2d(2, 2, 1, groups=2),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        nn.MaxPool2d(2, stride=1),
        nn.BatchNorm2d(2).eval(),
        nn.Flatten(2),
        nn.MaxPool2d((2, 2)),
        nn.Dropout(),
        type("Own", (nn.Linear,), {})(2, 2),
        type("Skips", (nn.Sequential,), {"forward": lambda self, x: x + self[0](x)})(nn.ReLU()),
    ],
    ids=str,
)
def test_jax_refuses_layers_that_it_would_compute_otherwise(layer: nn.Module) -> None:
    pytest.importorskip("jax")
    from metalearn.benchmarks import jax_maml

    with pytest.raises(NotImplementedError, match=type(layer).__name__):
        jax_maml.network(nn.Sequential(layer))


@pytest.mark.parametrize("name", WORKLOADS)
def test_jax_computes_the_network_of_every_workload(name: str) -> None:
    """And the tiny one that its worker begins with, which measures no memory otherwise."""
    pytest.importorskip("jax")
    from metalearn.benchmarks import jax_maml

    workload = replace(WORKLOADS[name], tasks=1)
    tiny = replace(workload, make=partial(Conv4, (1, 8, 8), 2, filters=2), input_shape=(1, 8, 8))
    for one in (workload, replace(tiny, way=2)):
        module = one.module(torch.float32)
        x = one.batch(torch.float32).support[0][0]
        params = {n: p.detach().numpy() for n, p in module.named_parameters()}
        found = torch.from_numpy(np.array(jax_maml.network(module)(params, x.numpy())))
        torch.testing.assert_close(found, module(x).detach(), rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_used_twice_is_so_in_jax() -> None:
    pytest.importorskip("jax")
    from metalearn.benchmarks import jax_maml

    relu, linear = nn.ReLU(), nn.Linear(4, 4)
    module = nn.Sequential(linear, relu, nn.Linear(4, 4), relu, nn.Identity(), linear)
    x = torch.randn(5, 4, generator=oracles.generator(0))
    params = {name: p.detach().numpy() for name, p in module.named_parameters()}
    found = torch.from_numpy(np.array(jax_maml.network(module)(params, x.numpy())))
    torch.testing.assert_close(found, module(x).detach())


def test_both_ways_of_a_sweep_train_the_same_members(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[list[Any]] = []

    class Seen(EnsembleTrainer):
        def fit(self) -> Any:
            found = super().fit()
            trained.append([member.state_dict() for member in self.ensemble.members()])
            return found

    monkeypatch.setattr(sweep, "EnsembleTrainer", Seen)
    race = sweep.sweep_race(digits_data(seed=0), members=2, steps=3)
    assert (race.members, race.steps) == (2, 3)
    assert race.at_once > 0 and race.one_by_one > 0 and math.isfinite(race.one_by_one)
    _, together, *alone = trained  # the first of all only loads what is loaded lazily
    for one, (other,) in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(together[0][name], together[1][name]) for name in together[0])


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


WAYS = ["plain gradient", "flat", "layers", "the head by itself", "automatic"]
PRIVATE_WAYS = ["private step, flat", "private step, C follows the median"]
NEEDS_PRIVACY = "the extra privacy is not installed"


@pytest.mark.parametrize("name", clipped_networks.CLIPPED_NETWORKS)
def test_every_way_of_clipping_gives_that_of_a_loop(name: str) -> None:
    costs = {c.way: c for c in clipping_costs.clipping_race(name, rounds=1, samples=6)}
    assert [way for way in costs if way not in PRIVATE_WAYS] == WAYS
    assert all(costs[way].error < 1e-4 for way in WAYS[1:])
    assert all(cost.milliseconds > 0 and cost.memory > 0 for cost in costs.values())
    assert costs["plain gradient"].plain == 1 == costs["flat"].flat
    table = clipping_costs.clipping_table({name: list(costs.values())})
    assert table.count("\n") == 1 + len(costs)


def test_private_steps_are_among_the_ways_of_clipping() -> None:
    pytest.importorskip("dp_accounting", reason=NEEDS_PRIVACY)
    assert list(clipping_costs.CLIPPING_WAYS) == [*WAYS, *PRIVATE_WAYS]


@pytest.mark.parametrize("name", clipped_networks.CLIPPED_NETWORKS)
@pytest.mark.parametrize("settings", [{}, {"clip_quantile": 0.5}, {"chunk_size": 4}])
def test_the_private_step_that_is_timed_clips_the_whole_batch(
    name: str, settings: dict[str, Any]
) -> None:
    pytest.importorskip("dp_accounting", reason=NEEDS_PRIVACY)
    network = clipped_networks.CLIPPED_NETWORKS[name]
    problem = network.problem(6)
    exact = clipped_steps.clipped_mean(clipped_steps.looped_gradients(*problem), 0.5)
    given: Any = {"noise_multiplier": 1e-9, **settings}
    run = clipping_costs.private_gradient(*network.copied(problem), 0.5, **given)
    found = run()
    assert set(found) == set(exact)
    assert clipped_steps.distance(found, exact) < 1e-4


def test_memory_of_a_clipped_step_grows_with_the_batch_but_not_in_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clipping_costs, "_CHUNK", 16)
    peaks = clipping_costs.step_memory("mnist", (32, 128))
    small, large = peaks[32], peaks[128]
    for way in ("plain", "clipped"):
        assert 2 * small[way] < large[way]
    assert large["plain"] < large["clipped"] < 3 * large["plain"]
    assert large["clipped, chunk_size=16"] < 1.2 * small["clipped, chunk_size=16"]
    lines = clipping_costs.step_memory_table({"mnist": peaks}).splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("| opacus' MNIST network | 128 |")


def test_the_suite_has_a_table_for_each_race(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module("metalearn.benchmarks.suites")
    for race in ("clipped_race", "clipping_race"):
        full = getattr(module, race)
        monkeypatch.setattr(module, race, partial(full, samples=4))
    monkeypatch.setattr(module, "CLIPPED_NETWORKS", ["mlp"])
    monkeypatch.setattr(module, "SAMPLE_WORKLOADS", [])
    monkeypatch.setattr(module, "memory_table", lambda peaks: "")
    monkeypatch.setattr(module, "_BATCHES", (4,))
    found = SUITES["per_sample"](1)
    assert {"clipped", "clipping_costs", "peak_bytes_of_steps"} < set(found.numbers)
    assert json.loads(json.dumps(found.numbers))["clipping_costs"]["mlp"][1]["way"] == "flat"
    for head in (
        "| ÷ plain gradient, peak MB |",
        "| ÷ plain gradient, ÷ flat |",
        "| peak MB | N |",
    ):
        assert head in found.table
