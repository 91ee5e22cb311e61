"""Gradients of every sample of networks of many kinds, inside and under further derivatives.

Axes: N samples.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from metalearn.core import check_per_sample, per_sample_gradients
from metalearn.core.chunking import resolve_chunk
from tests.support.networks import CASES, Case, case, noise, scaled, tiny_bert
from tests.support.oracles import assert_trees, generator, tree_map

EVERY = pytest.mark.parametrize("name", list(CASES))


def looped(case: Case) -> dict[str, Tensor]:
    """One ordinary backward pass through the module's parameters for each sample."""
    loss_fn, params, batch, _ = case
    count = len(next(iter(batch.values())) if isinstance(batch, dict) else batch[0])
    rows: dict[str, list[Tensor]] = {name: [] for name in params}
    for i in range(count):
        values = {name: value.clone().requires_grad_() for name, value in params.items()}
        loss_fn(values, tree_map(lambda x, i=i: x[i : i + 1], batch)).backward()
        for name, value in values.items():
            rows[name].append(torch.zeros_like(value) if value.grad is None else value.grad)
    return {name: torch.stack(row) for name, row in rows.items()}


@EVERY
def test_all_ways_equal_a_loop_and_average_to_the_batch(name: str) -> None:
    problem = case(name)
    loss_fn, params, batch, _ = problem
    exact = looped(problem)
    for settings in ({}, {"method": "vmap"}, {"chunk_size": 3}, {"chunk_size": 1}):
        assert_trees(per_sample_gradients(loss_fn, params, batch, **settings), exact)
    assert_trees({k: v.mean(0) for k, v in exact.items()}, grad(loss_fn)(params, batch))
    found = check_per_sample(loss_fn, params, batch)
    errors = [*found.vmap.values(), *found.layers.values(), *found.batch.values(), found.norms]
    assert max(errors) < 1e-9


@EVERY
def test_inside_outer_vmaps_over_members_and_tasks(name: str) -> None:
    loss_fn, params, batch, _ = case(name)
    members = scaled(params)
    tasks = tree_map(lambda x: torch.stack([x, x.flip(0)]), batch)
    take = lambda p, b: per_sample_gradients(loss_fn, p, b)  # noqa: E731
    found = vmap(vmap(take, (None, 0)), (0, None))(members, tasks)
    for m in range(2):
        part = {key: value[m] for key, value in members.items()}
        for t in range(2):
            exact = take(part, tree_map(lambda x, t=t: x[t], tasks))
            assert_trees({key: value[m, t] for key, value in found.items()}, exact)


@pytest.mark.parametrize("name", ["mlp", "convolutions", "large_pictures"])
def test_they_can_be_differentiated_in_turn(name: str) -> None:
    loss_fn, params, batch, _ = case(name)

    def spread(params: Any, method: Any) -> Tensor:
        grads = per_sample_gradients(loss_fn, params, batch, method=method)
        return torch.stack([g.var(0).sum() for g in grads.values()]).sum()

    exact = grad(spread)(params, "vmap")
    assert_trees(grad(spread)(params, "layers"), exact, 1e-9)
    values = {key: value.clone().requires_grad_() for key, value in params.items()}
    spread(values, "layers").backward()
    assert_trees({key: value.grad for key, value in values.items()}, exact, 1e-9)


def test_losses_that_take_gradients_themselves() -> None:
    """An inner step on the sample: the layer's calls inside of it are left to torch."""
    loss_fn, params, batch, module = case("mlp")

    def after_a_step(params: Any, batch: Any) -> Tensor:
        step = grad(loss_fn)(params, batch)
        return loss_fn({key: value - 0.1 * step[key] for key, value in params.items()}, batch)

    problem = Case(after_a_step, params, batch, module)
    assert_trees(per_sample_gradients(after_a_step, params, batch), looped(problem))


def test_trees_of_tensors_and_losses_with_a_penalty() -> None:
    """A penalty reaches the weight by another way; a leaf without effect has zeros."""
    params = [noise(2, 3), (noise(2), noise(1))]

    def loss(params: Any, batch: Any) -> Tensor:
        weight, (bias, _) = params
        z = F.linear(batch["x"], weight, bias)
        return (
            (z - batch["y"]).square().mean()
            + weight.square().sum()
            + F.linear(weight, weight).sum()
        )

    batch = {"x": noise(4, 3), "y": noise(4, 2)}
    found = per_sample_gradients(loss, params, batch)
    exact = per_sample_gradients(loss, params, batch, method="vmap")
    torch.testing.assert_close(found, exact)
    assert not found[1][1].any() and found[1][1].shape == (4, 1)


def test_tiny_bert() -> None:
    pytest.importorskip("transformers")
    problem = tiny_bert()
    found = per_sample_gradients(problem.loss_fn, problem.params, problem.batch)
    assert_trees(found, looped(problem), 1e-9)


def test_chunks_follow_from_a_budget() -> None:
    loss_fn, params, _, _ = case("mlp")
    batch = (torch.randn(64, 3, generator=generator(1), dtype=torch.float64), torch.arange(64) % 3)
    take = lambda batch: per_sample_gradients(loss_fn, params, batch)  # noqa: E731
    small, large = (resolve_chunk(take, batch, "auto", m) for m in ("20kB", "40kB"))
    assert small is not None and large is not None and 1 <= small < large <= 64
    assert resolve_chunk(take, batch, "auto", "1GB") == 64
    assert_trees(
        per_sample_gradients(loss_fn, params, batch, chunk_size="auto", memory="20kB"), take(batch)
    )
