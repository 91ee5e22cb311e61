"""What every learner of the table promises, in every engine, alone and as members."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch

from metalearn.core.tree import tree_map
from metalearn.models import MLP, Ensemble
from metalearn.tasks import FewShotTasks, SinusoidTasks
from metalearn.trainers import LEARNERS, MAML, Learner, SampleLearner
from metalearn.trainers.meta.making import takes_maml
from metalearn.types import TaskBatch
from tests.contracts.trainers import OF_REGRESSION, OWN_SETTINGS
from tests.support.builders import assert_same, patterns
from tests.support.devices import DEVICE

TASKS = FewShotTasks(patterns(), way=3, shot=2, query=2)
WAVES = SinusoidTasks(shot=4, query=3)
LEARNT = "_learns_rates"
FIXED_INNER = {"imaml", "reptile"}
"""Learners whose gradient knows nothing of what an inner optimiser learns."""
INNER = [name for name in LEARNERS if takes_maml(LEARNERS[name].make)]
WITH_RATES = [f"{name}{LEARNT}" for name in INNER if name not in FIXED_INNER]
every_learner = pytest.mark.parametrize("name", [*LEARNERS, *WITH_RATES])
RATES_PER = {f"meta_sgd{LEARNT}": "element_and_step", f"protomaml{LEARNT}": "step"}
"""Of learners that have rates of their own kind."""
APPROXIMATE = {"fomaml", "fomaml_learns_rates", "imaml", "reptile"}
every_engine = pytest.mark.parametrize("engine", ["loop", "vmap", "batched"])


def tasks_for(name: str) -> Any:
    return WAVES if name in OF_REGRESSION else TASKS


def doubled(name: str, split: Any) -> TaskBatch:
    batch: TaskBatch = _doubled(tasks_for(name).sample(split, range(3), device=DEVICE))
    return batch


def batches(name: str) -> TaskBatch:
    """What a training step is made of: tasks, or samples."""
    if not on_samples(name):
        return doubled(name, "train")
    drawn = _doubled(TASKS.training_samples(range(3), 7, device=DEVICE))
    return TaskBatch(drawn, drawn)


def _doubled(batch: Any) -> Any:
    return tree_map(lambda x: x.double() if x.is_floating_point() else x, batch)


def on_samples(name: str) -> bool:
    return getattr(LEARNERS[name.removesuffix(LEARNT)].make, "draws", "tasks") == "samples"


def network(name: str, seed: int) -> MLP:
    tasks = tasks_for(name)
    outputs = 1 if name in OF_REGRESSION else 3
    module = MLP(tasks.input_shape, outputs, hidden=(6,), seed=seed).double().to(DEVICE)
    with torch.no_grad():
        list(module.parameters())[-1].add_(
            0.1 + torch.arange(outputs, device=DEVICE) / 10
        )  # no feature is zero
    return module


def network_of(name: str, members: int) -> Any:
    seeds = range(members)
    return Ensemble.from_factory(partial(network, name), seeds) if members else network(name, 0)


def learner(name: str, module: Any, engine: Any) -> Learner:
    make = LEARNERS[name.removesuffix(LEARNT)].make
    if takes_maml(make):
        learnt: Any = {}
        if name.endswith(LEARNT):
            learnt = {
                "learn": ["lr", "momentum"],
                "lr_per": RATES_PER.get(name, "parameter_and_step"),
            }
        maml = MAML(inner_lr=0.2, inner_steps=2, eval_steps=2, engine=engine, **learnt)
        return make(module, maml=maml)
    one = make(module, kind=tasks_for(name).kind, engine=engine, **OWN_SETTINGS.get(name, {}))
    if isinstance(one, SampleLearner):
        one.learn_classes(TASKS.training_classes, 3)
    return one


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@every_learner
@every_engine
def test_members_are_learners_alone_in_every_engine(name: str, engine: str) -> None:
    tasks, drawn = doubled(name, "train"), batches(name)
    together = learner(name, network_of(name, 3), engine)
    found, scores = together.meta_gradient(drawn), together.score(tasks)
    assert scores.members is not None
    for index in range(3):
        alone = learner(name, together.network.copies()[index], "loop")
        wanted = alone.meta_gradient(drawn)
        same(found.loss[index], wanted.loss)
        same(found.query_losses[index], wanted.query_losses)
        for leaf, grad in wanted.grads.items():
            same(found.grads[leaf][index], grad)
        same(scores.members.losses[:, index], alone.score(tasks).losses)


@every_learner
@every_engine
def test_gradients_of_tasks_have_the_mean(name: str, engine: str) -> None:
    tasks, alone = batches(name), learner(name, network(name, 0), engine)
    wanted = alone.meta_gradient(tasks).grads
    found = alone.task_gradients(alone.params, tasks)
    assert found.keys() == wanted.keys()
    for leaf, grads in found.items():
        same(grads.mean(0), wanted[leaf])


@every_learner
@every_engine
@pytest.mark.parametrize("inductive", [False, True])
def test_adapted_modules_predict_what_is_scored(name: str, engine: str, inductive: bool) -> None:
    tasks, one = doubled(name, "test"), learner(name, network(name, 1), engine)
    scores = one.score(tasks, inductive=inductive)
    for t in range(3):
        (x, y), (queries, targets) = tree_map(lambda v, t=t: v[t], tasks)
        outputs = one.adapt((x, y), transductive=not inductive)(queries)
        same(scores.losses[t, -1], one.criterion(outputs, targets))
        found = outputs.argmax(-1) if one.kind == "classification" else outputs
        same(scores.predictions[t, -1], found)
        *_, state = one.fit(one.params, (x, y))
        same(one.predict(state, queries), outputs)


@every_learner
@every_engine
def test_a_gradient_is_the_slope_of_the_loss(name: str, engine: str) -> None:
    """What leaves a part out, or would need more steps, is the control: it has another slope."""
    tasks, one, size = batches(name), learner(name, network(name, 0), engine), 1e-6
    grads = one.meta_gradient(tasks).grads
    draws = torch.Generator().manual_seed(0)
    way = {n: torch.randn(p.shape, generator=draws).to(p) for n, p in one.params.items()}

    def loss(amount: float) -> float:
        moved = {n: p + amount * way[n] for n, p in one.params.items()}
        return float(one.gradient(moved, tasks, step=0).loss)

    slope = (loss(size) - loss(-size)) / (2 * size)
    got = float(torch.stack([(grads[n] * way[n]).sum() for n in grads]).sum())
    if name in APPROXIMATE:
        assert abs(got - slope) > 1e-3 * abs(slope)
    else:
        assert got == pytest.approx(slope, rel=1e-5)


@every_learner
@pytest.mark.parametrize("members", [0, 2])
def test_a_learner_is_left_as_it_was(name: str, members: int) -> None:
    drawn, module = batches(name), network_of(name, members)
    one, before = learner(name, module, "batched"), copy.deepcopy(module.state_dict())
    found = one.gradient(one.params, drawn, step=1)
    one.score(doubled(name, "train"))
    one.gradient(one.params, drawn, step=7)
    assert_same(dict(found.grads), dict(one.gradient(one.params, drawn, step=1).grads))
    assert_same(dict(module.state_dict()), dict(before))


@every_learner
@pytest.mark.parametrize("members", [0, 2])
def test_a_plan_goes_round(name: str, members: int) -> None:
    one, other = (learner(name, network_of(name, members), "auto") for _ in range(2))
    assert not one.state()
    one.prepare(batches(name), 4, deterministic=True)
    state = one.state()
    for kind in other.state_kinds():
        kind(state, "extra")
    other.load_state(state)
    assert_same(other.state(), state)
    assert other.batching == one.batching
