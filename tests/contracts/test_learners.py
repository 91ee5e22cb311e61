"""What every learner of the table promises, in every engine, alone and as members."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metalearn.core.tree import tree_map
from metalearn.models import MLP, Ensemble
from metalearn.tasks import FewShotTasks
from metalearn.trainers import LEARNERS, MAML, Learner
from metalearn.trainers.meta.making import takes_maml
from metalearn.types import TaskBatch
from tests.support.builders import patterns

TASKS = FewShotTasks(patterns(), way=3, shot=2, query=2)
every_learner = pytest.mark.parametrize("name", LEARNERS)
every_engine = pytest.mark.parametrize("engine", ["loop", "vmap", "batched"])


def doubled(split: Any) -> TaskBatch:
    batch: TaskBatch = tree_map(
        lambda x: x.double() if x.is_floating_point() else x, TASKS.sample(split, range(3))
    )
    return batch


def network(seed: int) -> MLP:
    return MLP((1, 4, 4), 3, hidden=(6,), seed=seed).double()


def learner(name: str, module: Any, engine: Any) -> Learner:
    make = LEARNERS[name].make
    if takes_maml(make):
        return make(module, maml=MAML(inner_lr=0.2, inner_steps=2, eval_steps=2, engine=engine))
    return make(module, engine=engine)


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@every_learner
@every_engine
def test_members_are_learners_alone_in_every_engine(name: str, engine: str) -> None:
    tasks = doubled("train")
    together = learner(name, Ensemble.from_factory(network, range(3)), engine)
    found, scores = together.meta_gradient(tasks), together.score(tasks)
    assert scores.members is not None
    for index in range(3):
        alone = learner(name, network(index), "loop")
        wanted = alone.meta_gradient(tasks)
        same(found.loss[index], wanted.loss)
        same(found.query_losses[index], wanted.query_losses)
        for leaf, grad in wanted.grads.items():
            same(found.grads[leaf][index], grad)
        same(scores.members.losses[:, index], alone.score(tasks).losses)


@every_learner
@every_engine
def test_gradients_of_tasks_have_the_mean(name: str, engine: str) -> None:
    tasks, alone = doubled("train"), learner(name, network(0), engine)
    wanted = alone.meta_gradient(tasks).grads
    for leaf, grads in alone.task_gradients(alone.params, tasks).items():
        same(grads.mean(0), wanted[leaf])


@every_learner
@every_engine
@pytest.mark.parametrize("inductive", [False, True])
def test_adapted_modules_predict_what_is_scored(name: str, engine: str, inductive: bool) -> None:
    tasks, one = doubled("test"), learner(name, network(1), engine)
    scores = one.score(tasks, inductive=inductive)
    for t in range(3):
        (x, y), (queries, targets) = tree_map(lambda v, t=t: v[t], tasks)
        outputs = one.adapt((x, y), transductive=not inductive)(queries)
        same(scores.losses[t, -1], torch.nn.functional.cross_entropy(outputs, targets))
        assert torch.equal(scores.predictions[t, -1], outputs.argmax(-1))
        *_, state = one.fit(one.params, (x, y))
        same(one.predict(state, queries), outputs)
