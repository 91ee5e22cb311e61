"""ProtoMAML: against a plain loop written from the paper, in float64; limits; what is refused.

Axes: T tasks, K inner steps.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP, Conv4, Ensemble
from metalearn.tasks import FewShotTasks, SinusoidTasks
from metalearn.trainers import MAML, MetaTrainer, ProtoMAML, ProtoNet
from metalearn.types import TaskBatch
from tests.support.builders import assert_goes_on, patterns

TASKS = FewShotTasks(patterns(), way=3, shot=2, query=2)
SETTINGS: dict[str, Any] = {
    "steps": 4, "meta_batch": 3, "validation_tasks": 4, "progress": False, "eval_every": 2,
}  # fmt: skip
every_engine = pytest.mark.parametrize("engine", ["auto", "batched", "vmap", "loop"])


def network(seed: int = 0) -> MLP:
    return MLP((1, 4, 4), 5, hidden=(6,), seed=seed).double()


def pictures(seed: int = 0) -> Conv4:
    """A network whose norms take the statistics of the batch, with affine parameters that adapt."""
    return Conv4((1, 4, 4), 3, filters=3, head=False, seed=seed).double()


def doubled(split: Any = "train", count: int = 3) -> TaskBatch:
    found: TaskBatch = tree_map(
        lambda x: x.double() if x.is_floating_point() else x, TASKS.sample(split, range(count))
    )
    return found


def by_hand(
    module: Any, task: Any, rates: Any, *, body: bool = True, first_order: bool = False
) -> Tensor:
    """The query loss of one task after steps of these sizes."""
    (x, y), (queries, wanted) = task
    theta = dict(module.named_parameters())
    call = partial(torch.func.functional_call, module)
    means = torch.stack([call(theta, (x,))[y == c].mean(0) for c in range(3)])
    weight, bias = 2 * means, -(means**2).sum(1)
    theta = {name: value.clone() for name, value in theta.items()}  # the head is no function of it
    for rate in rates:
        inputs = [*theta.values(), weight, bias] if body else [weight, bias]
        loss = F.cross_entropy(call(theta, (x,)) @ weight.T + bias, y)
        slopes = list(torch.autograd.grad(loss, inputs, create_graph=not first_order,
                                          retain_graph=True))  # fmt: skip
        bias, weight = bias - rate * slopes.pop(), weight - rate * slopes.pop()
        theta = {n: p - rate * g for (n, p), g in zip(theta.items(), slopes or [0.0] * len(theta))}
    return F.cross_entropy(call(theta, (queries,)) @ weight.T + bias, wanted)


@every_engine
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("body", [True, False])
@pytest.mark.parametrize("make", [network, pictures])
def test_the_gradient_is_that_of_a_loop(
    engine: Any, first_order: bool, body: bool, make: Any
) -> None:
    module, tasks = make(), doubled()
    maml = MAML(inner_lr=0.3, inner_steps=3, first_order=first_order, engine=engine)
    learner = ProtoMAML(module, maml, adapt_body=body)
    found = learner.meta_gradient(tasks)
    hand = partial(by_hand, module, rates=[0.3] * 3, body=body, first_order=first_order)
    losses = torch.stack([hand(tree_map(lambda x, t=t: x[t], tuple(tasks))) for t in range(3)])
    torch.testing.assert_close(found.query_losses, losses.detach(), rtol=1e-9, atol=1e-11)
    named = dict(module.named_parameters())
    grads = torch.autograd.grad(losses.mean(), list(named.values()))
    for name, grad in zip(named, grads):
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-7, atol=1e-10)


@every_engine
@pytest.mark.parametrize("first_order", [False, True])
def test_learnt_step_sizes(engine: Any, first_order: bool) -> None:
    module, tasks = network(), doubled()
    maml = MAML(inner_lr=0.3, inner_steps=2, learn="lr", lr_per="step", engine=engine,
                first_order=first_order)  # fmt: skip
    found = ProtoMAML(module, maml).meta_gradient(tasks)
    rates = torch.tensor([0.3, 0.3], dtype=torch.float64, requires_grad=True)
    hand = partial(by_hand, module, rates=rates, first_order=first_order)
    losses = torch.stack([hand(tree_map(lambda x, t=t: x[t], tuple(tasks))) for t in range(3)])
    (wanted,) = torch.autograd.grad(losses.mean(), rates)
    torch.testing.assert_close(found.grads["learnt.lr"], wanted, rtol=1e-7, atol=1e-10)


@every_engine
def test_without_steps_it_is_a_prototypical_network(engine: Any) -> None:
    module, tasks = network(), doubled()
    one = ProtoMAML(module, MAML(inner_steps=0, eval_steps=0, engine=engine))
    other = ProtoNet(module)
    found, wanted = one.meta_gradient(tasks), other.meta_gradient(tasks)
    torch.testing.assert_close(found.query_losses, wanted.query_losses)
    for name, grad in wanted.grads.items():
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-8, atol=1e-11)
    scores = one.score(tasks), other.score(tasks)
    torch.testing.assert_close(scores[0].losses, scores[1].losses)


@pytest.mark.parametrize("inner", ["sgd", "adam"])
def test_a_gradient_is_the_slope_of_the_loss(inner: Any) -> None:
    tasks, module = doubled(), network()
    maml = MAML(inner_lr=0.05, inner_steps=3, inner_optimizer=inner, frozen="1.*")
    learner, size = ProtoMAML(module, maml), 1e-6
    grads, draws = learner.meta_gradient(tasks).grads, torch.Generator().manual_seed(0)
    way = {n: torch.randn(p.shape, generator=draws).to(p) for n, p in learner.params.items()}
    loss = [
        learner.gradient({n: p + s * way[n] for n, p in learner.params.items()}, tasks).loss
        for s in (size, -size)
    ]
    slope = float(loss[0] - loss[1]) / (2 * size)
    assert float(sum((grads[n] * way[n]).sum() for n in grads)) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "own", "moves"),
    [
        ({}, {}, {"1.weight", "classifier.weight"}),
        ({"frozen": "1.*"}, {}, {"classifier.weight"}),
        ({}, {"adapt_body": False}, {"classifier.weight"}),
    ],
)
def test_what_the_inner_loop_changes(settings: Any, own: Any, moves: set[str]) -> None:
    learner = ProtoMAML(network(), MAML(inner_lr=0.3, eval_steps=2, **settings), **own)
    support = tree_map(lambda x: x[0], tuple(doubled("test")))[0]
    first, _, last = learner.fit(learner.params, support)
    for name in ("1.weight", "classifier.weight"):
        assert torch.equal(first[name], last[name]) == (name not in moves)


def test_inner_steps_reduce_the_loss_of_a_support_set() -> None:
    learner = ProtoMAML(network(), MAML(inner_lr=0.1, eval_steps=4))
    support = tree_map(lambda x: x[0], tuple(doubled("test")))[0]
    states = learner.fit(learner.params, support)
    losses = [float(learner.inner_loss(state, support)) for state in states]
    assert len(losses) == 5 and losses == sorted(losses, reverse=True)


def test_prediction_does_not_depend_on_the_order_of_samples_or_labels() -> None:
    learner = ProtoMAML(network(), MAML(inner_lr=0.3, eval_steps=2))
    (x, y), (queries, _) = tree_map(lambda v: v[0], tuple(doubled("test")))

    def outputs(x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        *_, state = learner.fit(learner.params, (x, y))
        return learner.predict(state, queries)

    wanted, turn = outputs(x, y, queries), torch.tensor([4, 0, 3, 5, 1, 2])
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)
    close(outputs(x[turn], y[turn], queries), wanted)
    close(outputs(x, y, queries.flip(0)), wanted.flip(0))
    close(outputs(x, torch.tensor([1, 2, 0])[y], queries), wanted[:, [2, 0, 1]])


@pytest.mark.parametrize("members", [0, 2])
def test_it_trains_at_higher_way_and_a_stopped_run_goes_on(members: int, tmp_path: Path) -> None:
    tasks = FewShotTasks(patterns(40), way={"train": 5, "test": 3}, shot=1, query=2)
    maml = MAML(inner_lr=0.1, inner_steps=2, learn="lr", lr_per="step")

    def made(**settings: Any) -> MetaTrainer:
        model: Any = Ensemble.from_factory(network, range(2)) if members else network()
        return MetaTrainer(
            model.float(), tasks, learner="protomaml", maml=maml, **{**SETTINGS, **settings}
        )

    assert_goes_on(made, tmp_path)


@pytest.mark.parametrize(
    ("settings", "own", "message"),
    [
        ({"method": "mixed"}, {}, "^maml.method='mixed': auto, reverse or first_order is needed"),
        ({"method": "implicit"}, {}, "^maml.method='implicit': auto, reverse or first_order is"),
        ({"method": "reptile"}, {}, "^maml.method='reptile': auto, reverse or first_order is"),
        ({"memory": "1GB"}, {}, "^maml.memory='1GB': null is needed: protomaml plans no method"),
        (
            {"learn": "lr", "lr_per": "parameter"}, {},
            "^maml.lr_per='parameter': all or step is needed: the head is another in every task",
        ),
        (
            {"learn": "lr", "lr_per": "element_and_step"}, {},
            "^maml.lr_per='element_and_step': all or step is needed",
        ),
        (
            {"frozen": "1.*"}, {"adapt_body": False},
            "^maml.frozen='1.*': null is needed beside learner.adapt_body=false",
        ),
        ({"frozen": "heads.*"}, {}, "^maml.frozen='heads.*': "),
        ({}, {"kind": "regression"}, "^kind='regression': protomaml needs tasks of classific"),
        ({}, {"features": 0}, "^features=0: a whole number of at least 1 is needed"),
        ({}, {"adapt_body": 1}, "^adapt_body=1: true or false is needed"),
    ],
)  # fmt: skip
def test_bad_settings(settings: Any, own: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        ProtoMAML(network(), MAML(**settings), **own)


def test_tasks_of_regression() -> None:
    with pytest.raises(SettingError, match="^kind='regression': protomaml needs tasks"):
        MetaTrainer(MLP((1,), 4), SinusoidTasks(), learner="protomaml", **SETTINGS)


def test_inner_gradients_are_clipped_over_network_and_head() -> None:
    learner = ProtoMAML(network(), MAML(inner_lr=0.5, eval_steps=1, inner_clip=0.01))
    support = tree_map(lambda x: x[0], tuple(doubled("test")))[0]
    first, last = learner.fit(learner.params, support)
    moved = torch.stack([(last[n] - first[n]).square().sum() for n in first]).sum().sqrt()
    assert float(moved) == pytest.approx(0.5 * 0.01)


@every_engine
def test_inner_steps_of_a_part_of_the_support_set(engine: Any) -> None:
    def loss(size: int | None, engine: Any) -> Tensor:
        maml = MAML(inner_lr=0.3, inner_steps=3, support_batch=size, engine=engine)
        return ProtoMAML(network(), maml).meta_gradient(doubled()).query_losses

    torch.testing.assert_close(loss(6, engine), loss(None, engine))
    torch.testing.assert_close(loss(2, engine), loss(2, "loop"))
    assert not torch.allclose(loss(2, engine), loss(None, engine))
