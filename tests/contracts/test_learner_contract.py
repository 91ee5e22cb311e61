"""What every learner promises: one gradient in every engine, for tasks and members alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core.ensemble.stacking import unstack
from metalearn.core.tree import tree_map
from metalearn.models import Ensemble
from metalearn.tasks import FewShotTasks
from metalearn.trainers import MAML
from metalearn.trainers.meta.making import takes_maml
from metalearn.trainers.meta.protocol import Learner
from metalearn.trainers.meta.registry import LEARNERS
from metalearn.types import TaskBatch
from tests.contracts.trainers import network
from tests.support.builders import assert_same, patterns

ENGINES = ("batched", "vmap", "loop")
APPROXIMATE = {"fomaml"}

learners = pytest.mark.parametrize("name", LEARNERS)
engines = pytest.mark.parametrize("engine", ENGINES)


def made(name: str, engine: Any, members: int = 0, seed: int = 0) -> Learner:
    module: Any = network(seed)
    if members:
        module = Ensemble.from_factory(network, range(members))
    make = LEARNERS[name].make
    settings: dict[str, Any] = {"engine": engine}
    if takes_maml(make):
        settings = {"maml": MAML(inner_lr=0.2, inner_steps=2, eval_steps=2, engine=engine)}
    return make(module.double(), kind="classification", **settings)


@pytest.fixture(name="tasks", scope="module")
def _tasks() -> TaskBatch:
    batch = FewShotTasks(patterns(), way=3, shot=2, query=2).sample("train", range(4))
    return TaskBatch(*tree_map(lambda x: x.double() if x.is_floating_point() else x, tuple(batch)))


def assert_near(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@learners
@engines
@pytest.mark.parametrize("members", [0, 2])
def test_engines_give_one_gradient(name: str, engine: str, members: int, tasks: TaskBatch) -> None:
    found, wanted = (made(name, e, members).meta_gradient(tasks) for e in (engine, "loop"))
    assert_near(found.grads, wanted.grads)
    assert_near(found.loss, wanted.loss)
    assert_near(found.query_losses, wanted.query_losses)


@learners
@engines
def test_members_learn_as_alone(name: str, engine: str, tasks: TaskBatch) -> None:
    found = made(name, engine, members=2).meta_gradient(tasks)
    for index, row in enumerate(unstack(found.grads)):
        alone = made(name, engine, seed=index).meta_gradient(tasks)
        assert_near(row, alone.grads)
        assert_near(found.loss[index], alone.loss)


@learners
@engines
def test_the_gradient_is_the_slope_of_the_loss(name: str, engine: str, tasks: TaskBatch) -> None:
    """First order, which leaves a part out, is the control: it has another slope."""
    learner, size = made(name, engine), 1e-6
    grads = learner.meta_gradient(tasks).grads
    draws = torch.Generator().manual_seed(0)
    way = {n: torch.randn(p.shape, generator=draws).to(p) for n, p in learner.params.items()}

    def loss(amount: float) -> float:
        moved = {n: p + amount * way[n] for n, p in learner.params.items()}
        return float(learner.gradient(moved, tasks, step=0).loss)

    slope = (loss(size) - loss(-size)) / (2 * size)
    got = float(torch.stack([(grads[n] * way[n]).sum() for n in grads]).sum())
    if name in APPROXIMATE:
        assert abs(got - slope) > 1e-3 * abs(slope)
    else:
        assert got == pytest.approx(slope, rel=1e-5)


@learners
@engines
def test_gradients_of_tasks_have_the_gradient_as_mean(
    name: str, engine: str, tasks: TaskBatch
) -> None:
    learner = made(name, engine)
    each = learner.task_gradients(learner.params, tasks)
    assert_near({n: g.mean(0) for n, g in each.items()}, dict(learner.meta_gradient(tasks).grads))


@learners
@engines
@pytest.mark.parametrize("members", [0, 2])
def test_what_is_adapted_answers_as_was_scored(
    name: str, engine: str, members: int, tasks: TaskBatch
) -> None:
    learner = made(name, engine, members)
    for inductive in (False, True):
        scores = learner.score(tasks, inductive=inductive)
        for t in range(4):
            task: Any = tree_map(lambda x, t=t: x[t], tasks)
            outputs: Tensor = learner.adapt(task.support, transductive=not inductive)(task.query[0])
            log_p = outputs.log_softmax(-1)
            if members:
                log_p = log_p.logsumexp(0)
            assert torch.equal(log_p.argmax(-1), scores.predictions[t, -1])


@learners
@pytest.mark.parametrize("members", [0, 2])
def test_a_learner_is_left_as_it_was(name: str, members: int, tasks: TaskBatch) -> None:
    learner, other = made(name, "batched", members), made(name, "batched", members)
    one = learner.gradient(learner.params, tasks, step=1)
    learner.score(tasks)
    learner.gradient(learner.params, tasks, step=7)
    assert_same(dict(one.grads), dict(learner.gradient(learner.params, tasks, step=1).grads))
    assert_same(learner.module.state_dict(), other.module.state_dict())


@learners
@pytest.mark.parametrize("members", [0, 2])
def test_a_plan_goes_round(name: str, members: int, tasks: TaskBatch) -> None:
    one, other = made(name, "auto", members), made(name, "auto", members)
    assert not one.state()
    one.prepare(tasks, 4, deterministic=True)
    state = one.state()
    for kind in other.state_kinds():
        kind(state, "extra")
    other.load_state(state)
    assert_same(other.state(), state)
    assert other.batching == one.batching
