"""Reptile: against torch's own optimisers, its limits, and the paper's outer step.

Axes: T tasks, M members, K inner steps, N samples of a support set, B of them in an inner step.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import meta_gradient, sgd
from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP, Conv4, Ensemble
from metalearn.tasks import FewShotTasks, SinusoidTasks
from metalearn.trainers import (
    ANIL,
    CAVIA,
    MAML,
    MetaLearner,
    MetaTrainer,
    MultiStepLearner,
    Reptile,
)
from metalearn.types import TaskBatch
from tests.support.builders import assert_same, patterns

WAVES = SinusoidTasks(shot=5, query=4)
every_engine = pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
TASKS = 3
PARTS = [[0, 3], [1, 4], [2, 0], [3, 1]]  # two of five samples, every third in turn


def doubled() -> TaskBatch:
    batch: TaskBatch = tree_map(lambda x: x.double(), WAVES.sample("train", range(TASKS)))
    return batch


def network(seed: int = 0) -> MLP:
    return MLP((1,), 1, hidden=(6,), seed=seed)


def learner(**maml: Any) -> Reptile:
    settings: dict[str, Any] = {"inner_lr": 0.02, "inner_steps": 4, "eval_steps": 4, **maml}
    return Reptile(network().double(), MAML(**settings), kind="regression")


def by_torch(make: Any, parts: Any) -> dict[str, Tensor]:
    """The mean over tasks of θ − φ_K, by an optimiser of torch on a copy of the module."""
    module = network().double()
    total = {n: torch.zeros_like(p) for n, p in module.named_parameters()}
    for t in range(TASKS):
        inside = copy.deepcopy(module)
        optimizer = make(inside.parameters())
        x, y = (part[t] for part in doubled().support)
        for k in range(4):
            rows = parts[k] if parts else slice(None)
            optimizer.zero_grad()
            (inside(x[rows]) - y[rows]).square().mean().backward()
            optimizer.step()
        for (name, start), end in zip(module.named_parameters(), inside.parameters()):
            total[name] += (start - end).detach() / TASKS
    return total


@every_engine
@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("inner", ["sgd", "heavy", "adam"])
def test_the_gradient_is_the_way_of_torchs_optimisers(engine: Any, inner: str, size: Any) -> None:
    settings, make = {
        "sgd": ({}, lambda p: torch.optim.SGD(p, lr=0.02)),
        "heavy": ({"inner_momentum": 0.5}, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.5)),
        "adam": (
            {"inner_optimizer": "adam", "inner_betas": (0.0, 0.999)},
            lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.0, 0.999)),
        ),
    }[inner]
    one = learner(engine=engine, support_batch=size, **settings)
    found, wanted = one.meta_gradient(doubled()), by_torch(make, PARTS if size else None)
    each = one.task_gradients(one.params, doubled())
    for name, way in wanted.items():
        torch.testing.assert_close(found.grads[name], way, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(each[name].mean(0), found.grads[name])
    losses = one.score(doubled(), steps=4).losses[:, -1]
    torch.testing.assert_close(found.query_losses, losses)


@every_engine
def test_one_step_of_gradient_descent_trains_all_tasks_jointly(engine: Any) -> None:
    one = learner(inner_steps=1, engine=engine)
    jointly = {n: p.clone().requires_grad_() for n, p in one.params.items()}
    support = doubled().support
    rows = [one.loss(jointly, (support[0][t], support[1][t])) for t in range(TASKS)]
    slopes = torch.autograd.grad(torch.stack(rows).mean(), list(jointly.values()))
    found = one.meta_gradient(doubled()).grads
    for name, slope in zip(jointly, slopes):
        torch.testing.assert_close(found[name], 0.02 * slope)


def test_queries_have_no_part_in_the_gradient() -> None:
    one, (support, query) = learner(), doubled()
    other = TaskBatch(support, tree_map(lambda x: x.flip(0) + 1, query))
    found, same = one.meta_gradient(TaskBatch(support, query)), one.meta_gradient(other)
    assert_same(dict(found.grads), dict(same.grads))
    assert float((found.query_losses - same.query_losses).abs().min()) > 1e-6


def test_the_order_of_the_support_set_matters_to_parts_of_it_alone() -> None:
    support, query = doubled()
    turned = TaskBatch(tree_map(lambda x: x.flip(1), support), query)
    for size, depends in ((None, False), (5, False), (2, True)):
        one = learner(support_batch=size)
        found, other = one.meta_gradient(doubled()).grads, one.meta_gradient(turned).grads
        gaps = [float((found[n] - other[n]).abs().max()) for n in found]
        assert (max(gaps) > 1e-6) == depends


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_an_outer_step_goes_towards_where_inner_loops_end(rate: float) -> None:
    maml = MAML(inner_lr=0.02, inner_steps=3, eval_steps=1)
    trainer = MetaTrainer(
        network(), WAVES, learner="reptile", maml=maml, steps=1, meta_batch=TASKS, clip=None,
        optimizer=lambda ps: torch.optim.SGD(ps, lr=rate), schedule="constant", validation_tasks=2,
    )  # fmt: skip
    one = Reptile(network(), maml, kind="regression")
    tasks, ends = WAVES.sample("train", range(TASKS)), []
    for t in range(TASKS):
        *_, end = one.fit(one.params, tree_map(lambda x, t=t: x[t], tasks.support), steps=3)
        ends.append(end)
    trainer.fit()
    for name, start in one.params.items():
        mean = torch.stack([end[name] for end in ends]).mean(0)
        wanted = start + rate * (mean - start)
        torch.testing.assert_close(dict(trainer.module.named_parameters())[name].detach(), wanted)


@pytest.mark.parametrize("members", [0, 2])
def test_it_trains_on_more_shots_than_it_tests_with(members: int) -> None:
    tasks = FewShotTasks(patterns(), way=3, shot={"train": 4, "validation": 1, "test": 1}, query=2)

    def made(seed: int) -> Conv4:
        return Conv4(tasks.input_shape, 3, filters=4, halvings=2, seed=seed)

    model: Any = Ensemble.from_factory(made, range(members)) if members else made(0)
    maml = MAML(inner_lr=0.1, inner_steps=2, eval_steps=3, support_batch=5)
    trainer = MetaTrainer(
        model, tasks, learner="reptile", maml=maml, steps=2, meta_batch=2, validation_tasks=2
    )
    trainer.fit()
    scores = [trainer.test(4, inductive=alone).losses for alone in (False, True)]
    assert all(bool(torch.isfinite(losses).all()) for losses in scores)
    assert float((scores[0] - scores[1]).abs().max()) > 1e-6


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_rounding_that_adam_makes_large_does_not_decide_on_the_engine(name: Any) -> None:
    """Of a bias before batch normalisation, whose gradient is zero but for rounding."""
    tasks = FewShotTasks(patterns(), way=3, shot=2, query=2)
    model = Conv4(tasks.input_shape, 3, filters=8, halvings=2)
    one = Reptile(model, MAML(inner_lr=0.003, inner_steps=2, inner_optimizer=name))
    assert one.prepare(tasks.sample("train", range(2)), 2, deterministic=True).engine == "batched"


def test_members_train_as_alone() -> None:
    settings: dict[str, Any] = {"steps": 3, "meta_batch": 3, "validation_tasks": 2}
    maml = MAML(inner_lr=0.02, inner_steps=2, eval_steps=2, support_batch=2)
    together = Ensemble.from_factory(network, range(2))
    members = MetaTrainer(together, WAVES, learner="reptile", maml=maml, **settings)
    members.fit()
    for index in range(2):
        alone = MetaTrainer(network(index), WAVES, learner="reptile", maml=maml, **settings)
        alone.fit()
        for name, value in alone.learner.params.items():
            found = members.learner.params[name][index]
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("maml", "message"),
    [
        ({"method": "mixed"}, r"^maml\.method='mixed': auto or reptile is needed with a learner"),
        ({"first_order": True}, r"^maml\.first_order=True: false is needed with a learner of"),
        ({"learn": "lr"}, r"^maml\.learn='lr': \[\] is needed with method=reptile, whose"),
        ({"frozen": "head.*"}, r"^maml\.frozen='head\.\*': null is needed with method=reptile"),
        ({"inner_steps": 0}, r"^maml\.inner_steps=0: at least 1 is needed with method=reptile"),
    ],
)
def test_bad_input(maml: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Reptile(network(), MAML(**maml))


@pytest.mark.parametrize("kind", [MultiStepLearner, CAVIA])
def test_learners_that_need_the_way_refuse_the_method(kind: type[MetaLearner]) -> None:
    with pytest.raises(SettingError, match=r"^maml\.method='reptile': auto, reverse, mixed or"):
        kind(network(), MAML(method="reptile"))


def test_what_does_not_adapt_is_not_left_as_it_is_in_silence() -> None:
    with pytest.raises(SettingError, match=r"^maml\.method='reptile': another is needed"):
        ANIL(network().double(), MAML(method="reptile"), kind="regression")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frozen": "1.*"}, r"^frozen='1\.\*': None is needed with method=reptile"),
        ({"steps": 0}, "^steps=0: at least 1 is needed with method=reptile"),
        ({"step_weights": [1, 0]}, r"^step_weights=\[1, 0\]: method=reptile needs None"),
        ({"optimizer": sgd(torch.tensor(0.1))}, "^optimizer='.*': method=reptile needs an inner"),
    ],
)
def test_the_pure_function_refuses_what_is_in_vain(settings: Any, message: str) -> None:
    one = learner()
    how: dict[str, Any] = {"optimizer": sgd(0.1), "steps": 1, **settings}
    with pytest.raises(SettingError, match=message):
        meta_gradient(one.loss, one.params, doubled(), method="reptile", **how)
