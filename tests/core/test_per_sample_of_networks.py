"""Gradients of every sample, by whatever layers receive, against loops and other libraries.

Axes: N samples.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from metalearn.core import check_per_sample, functionalize, per_sample_gradients, per_sample_module
from metalearn.core.chunking import resolve_chunk
from metalearn.errors import SettingError
from tests.core.networks import CASES, Case, case, noise, scaled, tiny_bert
from tests.oracles import assert_trees, draw, generator, tree_map

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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["mlp", "large_pictures"])
def test_equals_opacus_and_backpack(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opacus = pytest.importorskip("opacus")
        backpack = pytest.importorskip("backpack")
        from backpack.extensions import BatchGrad
    loss_fn, params, (x, y), module = case(name)
    found = per_sample_gradients(loss_fn, params, (x, y))
    sampled = opacus.GradSampleModule(copy.deepcopy(module))
    F.cross_entropy(sampled(x), y).backward()
    theirs = {n.removeprefix("_module."): p.grad_sample for n, p in sampled.named_parameters()}
    assert_trees(found, theirs)
    extended = backpack.extend(copy.deepcopy(module))
    with backpack.backpack(BatchGrad()):
        backpack.extend(nn.CrossEntropyLoss())(extended(x), y).backward()
    mine = {key: value / len(x) for key, value in found.items()}  # of the mean loss
    assert_trees(mine, {n: p.grad_batch for n, p in extended.named_parameters()})


def normed() -> nn.Module:
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    module = draw(nn.Sequential(*layers))
    with torch.no_grad():
        module[1].running_mean.copy_(noise(4))
    return module


@pytest.mark.parametrize("policy", ["eval", "groupnorm"])
def test_batch_norm_by_policy(policy: Any) -> None:
    module = normed()
    single = per_sample_module(module, batch_norm=policy)
    assert module[1].training and isinstance(module[1], nn.BatchNorm2d)
    apply, params, buffers = functionalize(single)
    loss_fn = lambda p, b: F.cross_entropy(apply(p, buffers, b[0]), b[1])  # noqa: E731
    batch = (noise(3, 1, 4, 4), torch.arange(3))
    problem = Case(loss_fn, params, batch, single)
    assert_trees(per_sample_gradients(loss_fn, params, batch), looped(problem))
    if policy == "eval":
        torch.testing.assert_close(single(batch[0]), copy.deepcopy(module).eval()(batch[0]))
    else:
        assert isinstance(single[1], nn.GroupNorm)


def test_a_check_shows_samples_that_depend_on_each_other() -> None:
    def loss(params: Any, batch: Tensor) -> Tensor:
        return (batch @ params - (batch @ params).mean()).square().mean()

    found = check_per_sample(loss, noise(2), noise(4, 2))
    assert max(found.vmap.values()) < 1e-9 and max(found.batch.values()) > 0.1


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": (noise(4, 3), torch.arange(3))}, r"batch=\{'0': 4, '1': 3\}: the same number"),
        ({"batch": (noise(0, 3), torch.arange(0))}, "at least 1, is needed"),
        ({"batch": (noise(4, 3), 1)}, r"batch\[1\]='int': a tensor with a leading sample axis"),
        ({"loss_fn": lambda p, b: b[0]}, r"loss_fn=\(1, 3\): a scalar is needed"),
        ({"params": {"w": torch.arange(2)}}, r"params\[w\]=torch.int64: a floating-point tensor"),
        ({"chunk_size": 0}, "chunk_size=0: a whole number of at least 1"),
        ({"memory": "1GB"}, "memory='1GB': it goes with chunk_size=\"auto\" alone"),
        ({"memory": "1kB", "chunk_size": "auto"}, "memory='1kB': one sample takes"),
        ({"method": "loop"}, "method='loop': one of layers, vmap is needed"),
    ],
)
def test_bad_inputs_are_refused_with_a_sentence(change: Any, message: str) -> None:
    loss_fn, params, batch, _ = case("mlp")
    settings = {"loss_fn": loss_fn, "params": params, "batch": batch} | change
    with pytest.raises(SettingError, match=message):
        per_sample_gradients(**settings)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("batch_stats", "batch_norm='batch_stats': statistics of the batch make every sample"),
        ("layer", "batch_norm='layer': one of eval, groupnorm is needed"),
        ("eval", r"module\[1\]='BatchNorm2d': there are no running statistics"),
    ],
)
def test_policies_that_cannot_work_are_refused(policy: Any, message: str) -> None:
    module = normed()
    if policy == "eval":
        module[1] = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(SettingError, match=message):
        per_sample_module(module, batch_norm=policy)
