"""Conditional neural processes: against a loop in float64, in every engine, and their limits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP, Conv4, Ensemble, NeuralProcess
from metalearn.tasks import FewShotTasks, SinusoidTasks
from metalearn.trainers import MAML, ConditionalNeuralProcess, MetaTrainer
from metalearn.types import TaskBatch
from tests.support.builders import (
    assert_goes_on,
    patterns,
)

TASKS = SinusoidTasks(shot=4, query=3)
SETTINGS: dict[str, Any] = {
    "steps": 4, "meta_batch": 3, "validation_tasks": 4, "progress": False, "eval_every": 2,
}  # fmt: skip


def network(seed: int = 0) -> MLP:
    return MLP((1,), 1, hidden=(6,), seed=seed, init_bias=0.3)


def doubled(count: int) -> TaskBatch:
    return TaskBatch(*tree_map(lambda x: x.double(), tuple(TASKS.sample("train", range(count)))))


def learner(module: nn.Module, **settings: Any) -> ConditionalNeuralProcess:
    given: dict[str, Any] = {"representation": 3, "hidden": (5,)} | settings
    return ConditionalNeuralProcess(module, **given)


def layers(module: nn.Module, x: Tensor) -> Tensor:
    *before, end = [layer for layer in module if isinstance(layer, nn.Linear)]  # type: ignore[attr-defined]
    for layer in before:
        x = (x @ layer.weight.T + layer.bias).relu()
    return x @ end.weight.T + end.bias


def by_hand(module: Any, task: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss, means and log-variances, example by example and query by query."""
    (x, y), (queries, targets) = task
    r = sum(layers(module.encoder, torch.cat([a, b])) for a, b in zip(x, y)) / len(x)
    first, *rest = [layer for layer in module.decoder.network if isinstance(layer, nn.Linear)]
    means = []
    for query in queries:
        weight = torch.cat([first.weight, module.decoder.weight], 1)
        h = weight @ torch.cat([query, r]) + first.bias
        for layer in rest:
            h = layer.weight @ h.relu() + layer.bias
        means.append(h)
    mean = torch.stack(means)
    if module.spread is None:
        return (mean - targets).pow(2).mean(), mean, None
    logs = torch.stack([layers(module.spread, torch.cat([q, r])) for q in queries])
    normal = torch.distributions.Normal(mean, (0.5 * logs).exp())
    constant = 0.5 * math.log(2 * math.pi)
    return -(normal.log_prob(targets) + constant).mean(), mean, logs


@pytest.mark.parametrize("engine", ["auto", "batched", "vmap", "loop"])
@pytest.mark.parametrize("variance", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_the_gradient_is_that_of_a_loop(
    engine: Any, variance: bool, chunk_size: int | None
) -> None:
    one = learner(network().double(), engine=engine, variance=variance, chunk_size=chunk_size)
    tasks = doubled(3)
    found = one.meta_gradient(tasks)
    rows = [by_hand(one.module, tree_map(lambda x, t=t: x[t], tasks))[0] for t in range(3)]
    mean = torch.stack(rows).mean()
    torch.testing.assert_close(found.loss, mean.detach(), rtol=1e-10, atol=0)
    grads = torch.autograd.grad(mean, list(one.module.parameters()))
    for (name, _), grad in zip(one.module.named_parameters(), grads):
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("inductive", [False, True])
@pytest.mark.parametrize("variance", [False, True])
@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_scores_are_squared_errors_of_means(engine: Any, variance: bool, inductive: bool) -> None:
    one, tasks = learner(network().double(), engine=engine, variance=variance), doubled(4)
    scores = one.score(tasks, inductive=inductive)
    assert scores.losses.shape == (4, 1)
    for t in range(4):
        task = tree_map(lambda x, t=t: x[t], tasks)
        _, mean, _ = by_hand(one.module, task)
        error = (mean - task.query[1]).pow(2).mean().detach()
        torch.testing.assert_close(scores.losses[t, 0], error, rtol=1e-10, atol=0)
        order, queries = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
        adapted = one.adapt((task.support[0][order], task.support[1][order]))
        found = adapted(task.query[0][queries])
        torch.testing.assert_close(found, mean[queries], rtol=1e-10, atol=1e-12)


def test_without_examples_it_is_the_bare_network() -> None:
    bare = network().double()
    module = NeuralProcess(bare, representation=3)
    x = torch.linspace(-1, 1, 5).double()[:, None]
    torch.testing.assert_close(module(x, x[:0], x[:0]), bare(x))
    torch.testing.assert_close(module(x), bare(x))
    doubled_set = torch.cat([x, x])
    torch.testing.assert_close(module(x, doubled_set, doubled_set.sin()), module(x, x, x.sin()))


def test_a_variance_of_one_gives_half_the_squared_error() -> None:
    one, tasks = learner(network().double(), variance=True), doubled(3)
    spread = {n: torch.zeros_like(p) for n, p in one.params.items() if n.startswith("spread")}
    assert spread
    found = one.gradient({**one.params, **spread}, tasks)
    torch.testing.assert_close(found.loss, one.score(tasks).losses.mean() / 2)


def test_members_and_resumed_runs(tmp_path: Path) -> None:
    def trainer(**settings: Any) -> MetaTrainer:
        model = Ensemble.from_factory(network, range(2))
        given = {**SETTINGS, "diagnostics": ["gradient_norms"], **settings}
        return MetaTrainer(model, TASKS, learner="cnp", **given)

    assert_goes_on(trainer, tmp_path)
    starts = list(trainer().learner.params["encoder.1.weight"])
    assert not torch.equal(*starts)


def test_it_learns() -> None:
    fast: Any = lambda ps: torch.optim.Adam(ps, lr=5e-3)  # noqa: E731
    settings = {**SETTINGS, "steps": 200, "meta_batch": 16, "eval_every": 200, "optimizer": fast}
    trainer = MetaTrainer(MLP((1,), 1), SinusoidTasks(shot=10), learner="cnp", **settings)
    before = trainer.test(100).losses[0, 0]
    trainer.fit()
    assert trainer.test(100).losses[0, 0] < 0.6 * before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "classification"}, "^kind='classification': a conditional neural process needs"),
        ({"representation": 0}, "^representation=0: a whole number of at least 1"),
        ({"hidden": (0,)}, "^hidden=0: a whole number of at least 1"),
        ({"engine": "fast"}, "^engine='fast': one of auto"),
        ({"chunk_size": 0}, "^chunk_size=0: "),
        ({"seed": -1}, "^seed=-1: "),
    ],
)
def test_bad_input(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        learner(network(), **settings)


def test_tasks_and_networks_that_do_not_fit() -> None:
    few = FewShotTasks(patterns(), way=3, shot=2, query=2)
    with pytest.raises(SettingError, match="^kind='classification': a conditional neural"):
        MetaTrainer(MLP((1, 4, 4), 3), few, learner="cnp")
    with pytest.raises(SettingError, match="^maml=.*cnp has none, so None is needed"):
        MetaTrainer(network(), TASKS, learner="cnp", maml=MAML())
    with pytest.raises(SettingError, match="^module='Conv4': a network of linear layers is needed"):
        learner(Conv4((1, 8, 8), 1))
    with pytest.raises(SettingError, match="^steps=2: cnp has no inner loop, so 0 is needed"):
        learner(network()).score(TASKS.sample("test", [0]), steps=2)
