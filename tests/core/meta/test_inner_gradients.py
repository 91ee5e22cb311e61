"""Clipped inner gradients and parts of the support set, against plain loops and limit cases.

Axes: T tasks, M members, K inner steps, N samples, B of them in an inner step.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import (
    Implicit,
    adam,
    adamw,
    adapt,
    along_adaptation,
    member_meta_gradient,
    meta_gradient,
    plan_meta_gradient,
    sgd,
    stack,
    task_meta_gradients,
    with_gradients,
)
from metalearn.core.meta.inner_gradients import part_of_support
from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.types import TaskBatch
from tests.support.oracles import assert_trees, generator

Tree = dict[str, Tensor]
T, N, K = 3, 5, 4
every_engine = pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
every_method = pytest.mark.parametrize("method", ["reverse", "mixed", "first_order"])
OPTIMIZERS: dict[str, Any] = {
    "sgd": partial(sgd, 0.3),
    "heavy": partial(sgd, 0.2, momentum=0.5, weight_decay=0.1),
    "adam": partial(adam, 0.1, betas=(0.0, 0.9)),
    "adamw": partial(adamw, 0.1, betas=(0.5, 0.9), weight_decay=0.05),
}
ORDER = [0, 3, 1, 4, 2]  # of five samples: every third
PARTS = {1: [[0], [3], [1], [4]], 2: [[0, 3], [1, 4], [2, 0], [3, 1]], 3: [[0, 3, 1], [4, 2, 0]]}
PARTS[3] += [[3, 1, 4], [2, 0, 3]]
PARTS[9] = [[0, 1, 2, 3, 4]] * K


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


PARAMS: Tree = {"a": noise(3, 2, seed=1), "b": noise(2, seed=2), "c": noise(seed=3)}
TASKS = TaskBatch(
    (noise(T, N, 3, seed=4), noise(T, N, 2, seed=5)),
    (noise(T, 4, 3, seed=6), noise(T, 4, 2, seed=7)),
)


def loss(p: Tree, batch: Any) -> Tensor:
    return (torch.tanh(batch[0] @ p["a"] + p["b"]) * p["c"] - batch[1]).square().mean()


def plain_steps(
    params: Tree, support: Any, make: Any, clip: float | None, parts: Any, *, second: bool
) -> Tree:
    """θ_K by autograd, one task, the optimiser's own update on gradients made here."""
    optimizer = make()
    state = optimizer.init(params)
    for k in range(K):
        batch = tree_map(lambda x, k=k: x[parts[k]], support) if parts else support
        grads = torch.autograd.grad(loss(params, batch), list(params.values()), create_graph=second)
        if clip is not None:
            size = torch.sqrt(sum((g * g).sum() for g in grads))  # type: ignore[arg-type]
            grads = tuple(g * clip / size if size > clip else g for g in grads)
        if not second:
            grads = tuple(g.detach() for g in grads)
        updates, state = optimizer.update(dict(zip(params, grads)), state, params)
        params = {n: p + updates[n] for n, p in params.items()}
    return params


def plain_gradient(make: Any, clip: float | None, parts: Any, *, second: bool) -> Tree:
    """The mean over tasks of the meta-gradient, or of the gradient at θ_K."""
    total: Tree = {n: torch.zeros_like(p) for n, p in PARAMS.items()}
    for t in range(T):
        support, query = tree_map(lambda x, t=t: x[t], TASKS)
        start = {n: p.clone().requires_grad_() for n, p in PARAMS.items()}
        end = plain_steps(start, support, make, clip, parts, second=second)
        if not second:
            start = end = {n: p.detach().requires_grad_() for n, p in end.items()}
        grads = torch.autograd.grad(loss(end, query), list(start.values()))
        total = {n: total[n] + g / T for n, g in zip(total, grads)}
    return total


@every_engine
@every_method
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("clip", "size"), [(0.5, None), (None, 2), (0.5, 1), (0.3, 3), (0.5, 9)])
def test_the_gradient_is_that_of_a_plain_loop(
    engine: Any, method: Any, name: str, clip: Any, size: Any
) -> None:
    optimizer = with_gradients(OPTIMIZERS[name](), clip_norm=clip, support_batch=size)
    how: dict[str, Any] = {"optimizer": optimizer, "steps": K, "engine": engine, "method": method}
    found = meta_gradient(loss, PARAMS, TASKS, **how)
    second = method != "first_order"
    wanted = plain_gradient(OPTIMIZERS[name], clip, PARTS.get(size), second=second)
    assert_trees(found.grads, wanted)
    assert found.support_losses.shape == (T, K)
    rows = task_meta_gradients(loss, PARAMS, TASKS, **how)
    assert_trees(tree_map(lambda g: g.mean(0), rows), wanted)


@every_engine
def test_the_gradient_is_the_slope_through_clipped_steps(engine: Any) -> None:
    optimizer = with_gradients(sgd(0.4, momentum=0.3), clip_norm=0.4, support_batch=2)
    how: dict[str, Any] = {"optimizer": optimizer, "steps": K, "engine": engine}
    way = {n: noise(*p.shape, seed=9) for n, p in PARAMS.items()}

    def value(amount: float) -> Tensor:
        moved = {n: p + amount * way[n] for n, p in PARAMS.items()}
        return meta_gradient(loss, moved, TASKS, **how).loss

    slope = (value(1e-6) - value(-1e-6)) / 2e-6
    grads = meta_gradient(loss, PARAMS, TASKS, **how).grads
    got = torch.stack([(grads[n] * way[n]).sum() for n in grads]).sum()
    assert float(got) == pytest.approx(float(slope), rel=1e-6)


@every_engine
@every_method
def test_what_limits_nothing_changes_nothing(engine: Any, method: Any) -> None:
    how: dict[str, Any] = {"steps": 2, "engine": engine, "method": method}
    wanted = meta_gradient(loss, PARAMS, TASKS, optimizer=sgd(0.1), **how)
    for limits in ({}, {"clip_norm": 1e9}, {"support_batch": N}, {"support_batch": N + 3}):
        optimizer = with_gradients(sgd(0.1), **limits)
        found = meta_gradient(loss, PARAMS, TASKS, optimizer=optimizer, **how)
        for name, grad in wanted.grads.items():
            assert torch.equal(found.grads[name], grad)
        assert torch.equal(found.query_losses, wanted.query_losses)


@every_engine
@pytest.mark.parametrize("method", ["reverse", "mixed"])
def test_a_gradient_of_zero_has_a_derivative(engine: Any, method: Any) -> None:
    """At the minimum of L = ½‖p − s‖² a step moves nothing, and its derivative is 1 − lr."""
    start = noise(3, seed=1)
    support = start.expand(2, 3)

    def bowl(p: Tensor, centre: Tensor) -> Tensor:
        return 0.5 * (p - centre).square().sum()

    tasks = TaskBatch(support, noise(2, 3, seed=2))
    optimizer = with_gradients(sgd(0.25), clip_norm=0.1)
    how: dict[str, Any] = {"engine": engine, "method": method}
    found = meta_gradient(bowl, start, tasks, optimizer=optimizer, steps=1, **how)
    torch.testing.assert_close(found.grads, 0.75 * (start - tasks.query).mean(0))


@every_engine
def test_clipped_steps_come_to_the_same_minimum(engine: Any) -> None:
    """The implicit gradient knows the minimum alone; parts are of the way there."""

    def bowl(p: Tensor, batch: Tensor) -> Tensor:
        return 0.5 * (p - batch).square().sum(-1).mean()

    start, tasks = noise(3, seed=1), TaskBatch(noise(T, N, 3, seed=2), noise(T, 2, 3, seed=3))
    how: dict[str, Any] = {"steps": 80, "method": "implicit", "engine": engine}
    how["implicit"] = Implicit(2.0, 3)
    wanted = meta_gradient(bowl, start, tasks, optimizer=sgd(0.2), **how)
    clipped = with_gradients(sgd(0.2), clip_norm=0.3)
    found = meta_gradient(bowl, start, tasks, optimizer=clipped, **how)
    torch.testing.assert_close(found.grads, wanted.grads, rtol=1e-7, atol=1e-9)
    assert float(found.support_losses[:, 1].mean()) > float(wanted.support_losses[:, 1].mean())
    parts = with_gradients(sgd(0.2), support_batch=2)
    near = meta_gradient(bowl, start, tasks, optimizer=parts, **how)
    for t in range(T):
        end = start
        for k in range(80):
            places = [ORDER[(2 * k + i) % N] for i in range(2)]
            end = end - 0.2 * ((end - tasks.support[t][places].mean(0)) + 2 * (end - start))
        torch.testing.assert_close(near.query_losses[t], bowl(end, tasks.query[t]))


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_members_with_learnt_rates_are_clipped_each_by_itself(engine: Any) -> None:
    rates = [{n: torch.tensor(0.1 + 0.1 * m).double() for n in PARAMS} for m in range(2)]
    many = [tree_map(lambda p, m=m: p + m, PARAMS) for m in range(2)]

    def made(rate: Any) -> Any:
        return with_gradients(sgd(rate), clip_norm=0.5, support_batch=2)

    settings: dict[str, Any] = {"steps": K, "engine": engine}
    learnt = {"optimizer": made(rates[0]), "learnt": stack(rates)}
    found = member_meta_gradient(loss, stack(many), TASKS, **learnt, **settings)
    for m in range(2):
        alone = meta_gradient(loss, many[m], TASKS, optimizer=made(rates[m]), steps=K)
        own = tree_map(lambda g, m=m: g[m], (found.grads, found.optimizer_grads))
        assert_trees(own[0], alone.grads)
        assert_trees(own[1], alone.optimizer_grads)


@every_engine
def test_states_on_the_way_are_those_of_one_task(engine: Any) -> None:
    optimizer = with_gradients(adam(0.1), clip_norm=0.5, support_batch=2)
    how: dict[str, Any] = {"optimizer": optimizer, "engine": engine, "steps": K}
    seen = along_adaptation(lambda p, s, q: p["a"], loss, PARAMS, TASKS, **how)
    for t in range(T):
        support = tree_map(lambda x, t=t: x[t], TASKS.support)
        for k in range(K + 1):
            alone = adapt(loss, PARAMS, support, optimizer=optimizer, steps=k)
            torch.testing.assert_close(seen[t, k], alone.params["a"])
    assert plan_meta_gradient(loss, PARAMS, TASKS, optimizer=optimizer, steps=K).engine == "batched"


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("count", [2, 3, 4, 6, 7, 10, 25, 50, 97])
@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_all_samples_are_gone_through_in_turn(count: int, size: int, lead: int) -> None:
    support = torch.arange(count).expand((2,) * lead + (count,)).clone()
    seen = [part_of_support(support, size, k, lead) for k in range(count)]
    places = torch.cat(seen, -1).reshape(-1, min(size, count) * count)[0].tolist()
    if size >= count:
        assert all(torch.equal(part, support) for part in seen)
        return
    first = places[:count]
    assert sorted(first) == list(range(count))
    assert places == first * size


@pytest.mark.parametrize(("way", "shot"), [(5, 5), (5, 10), (5, 15), (20, 5), (2, 8)])
@pytest.mark.parametrize("by_class", [False, True])
def test_parts_have_as_many_samples_of_each_class(way: int, shot: int, by_class: bool) -> None:
    classes = torch.arange(way).repeat(shot)
    classes = classes.sort().values if by_class else classes
    for k in range(3 * shot):
        counts = torch.bincount(part_of_support(classes, way, k, 0), minlength=way)
        assert int(counts.max()) <= 2 and int((counts == 0).sum()) <= way // 4


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"clip_norm": 0.0}, r"^clip_norm=0\.0: a finite number above 0 is needed"),
        ({"clip_norm": -1}, r"^clip_norm=-1: a finite number above 0 is needed"),
        ({"clip_norm": float("nan")}, r"^clip_norm=nan: a finite number above 0 is needed"),
        ({"clip_norm": "1"}, r"^clip_norm='1': a finite number above 0"),
        ({"support_batch": 0}, r"^support_batch=0: a whole number of at least 1 is needed"),
        ({"support_batch": 2.0}, r"^support_batch=2\.0: a whole number"),
    ],
)
def test_bad_input(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        with_gradients(sgd(0.1), **limits)


@every_engine
def test_leaves_without_samples_in_common_are_refused(engine: Any) -> None:
    optimizer = with_gradients(sgd(0.1), support_batch=2)
    for other in (noise(T, N + 1, 2, seed=5), noise(T, seed=5)):
        tasks = TaskBatch((TASKS.support[0], other), TASKS.query)
        with pytest.raises(SettingError, match=r"^support_batch=2: None is needed where leaves"):
            meta_gradient(loss, PARAMS, tasks, optimizer=optimizer, steps=1, engine=engine)
