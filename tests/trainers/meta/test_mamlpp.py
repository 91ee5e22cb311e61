"""MAML++: against the paper's schedule by hand, a plain loop, and MAML where it is switched off.

Axes: T tasks, K inner steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import MLP, Ensemble
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import MAML, MAMLPlusPlus, MetaLearner, MetaTrainer
from metalearn.trainers.meta.diagnostics import TaskSource
from metalearn.trainers.meta.mamlpp import annealed_weights
from metalearn.types import TaskBatch
from tests.support.builders import assert_same

WAVES = SinusoidTasks(shot=4, query=4)
OFF: dict[str, Any] = {"multi_step_steps": None, "first_order_steps": 0, "learn_rates": False}
every_engine = pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
every_method = pytest.mark.parametrize("method", ["reverse", "mixed", "first_order"])


def doubled() -> TaskBatch:
    batch: TaskBatch = tree_map(lambda x: x.double(), WAVES.sample("train", range(3)))
    return batch


def network(seed: int = 0) -> MLP:
    return MLP((1,), 1, hidden=(5,), seed=seed)


def learner(steps: int = 3, maml: dict[str, Any] | None = None, **own: Any) -> MAMLPlusPlus:
    settings = MAML(inner_lr=0.05, inner_steps=steps, eval_steps=steps, **(maml or {}))
    return MAMLPlusPlus(network().double(), settings, kind="regression", **own)


def written_out(
    one: MAMLPlusPlus, weights: list[float], *, second_order: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over tasks of Σ_k w_k L(θ_k, query), w_1 …, and its gradient, by a plain loop."""
    leaves = {n: p.detach().clone().requires_grad_() for n, p in one.params.items()}
    own = {n: p for n, p in leaves.items() if not n.startswith("learnt.")}

    def loss(params: dict[str, Tensor], batch: Any, t: int) -> Tensor:
        return (functional_call(one.module, params, batch[0][t]) - batch[1][t]).square().mean()

    total = torch.zeros((), dtype=torch.float64)
    tasks = doubled()
    for t in range(3):
        now = dict(own)
        for k, weight in enumerate(weights):
            slopes = torch.autograd.grad(
                loss(now, tasks.support, t), list(now.values()), create_graph=second_order
            )
            rates = [leaves[f"learnt.lr.{n}"][k] for n in now]
            now = {n: p - r * g for (n, p), r, g in zip(now.items(), rates, slopes)}
            total = total + weight * loss(now, tasks.query, t) / 3
    return total.detach(), dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()))))


@pytest.mark.parametrize(
    ("step", "weights"),
    [  # K = 5, E = 10: w_k = 1/5 − e/50 for k < 5, the fifth has the rest
        (0, [0.2, 0.2, 0.2, 0.2, 0.2]),
        (1, [0.18, 0.18, 0.18, 0.18, 0.28]),
        (5, [0.1, 0.1, 0.1, 0.1, 0.6]),
        (9, [0.02, 0.02, 0.02, 0.02, 0.92]),
        (10, [0, 0, 0, 0, 1]),
        (500, [0, 0, 0, 0, 1]),
    ],
)
def test_weights_follow_the_schedule_of_the_paper(step: int, weights: list[float]) -> None:
    one = learner(5, multi_step_steps=10)
    assert one.weights_at(step) == pytest.approx([0, *weights], abs=1e-15)


def test_annealed_weights_keep_three_hundredths_to_the_end() -> None:
    one = learner(2, multi_step_steps=100)
    assert one.weights_at(97)[1] == pytest.approx(0.015)
    assert one.weights_at(99) == pytest.approx([0, 0.015, 0.985])  # and not 1/200
    assert annealed_weights(0.5, 1) == [1.0]
    assert annealed_weights(0.5, 4) == pytest.approx([0.125, 0.125, 0.125, 0.625])


@every_engine
@every_method
@pytest.mark.parametrize("step", [0, 4, 30])
def test_the_gradient_is_that_of_a_plain_loop(engine: Any, method: Any, step: int) -> None:
    one = learner(maml={"engine": engine, "method": method}, multi_step_steps=10)
    found = one.gradient(one.params, doubled(), step=step)
    weights = {0: [1 / 3] * 3, 4: [0.2, 0.2, 0.6], 30: [0.0, 0.0, 1.0]}[step]
    loss, grads = written_out(one, weights, second_order=method != "first_order")
    torch.testing.assert_close(found.loss, loss, rtol=1e-10, atol=1e-12)
    assert found.grads.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-9, atol=1e-11)


@every_engine
def test_first_order_gives_way_to_second_order_within_one_plan(engine: Any) -> None:
    one = learner(maml={"engine": engine}, first_order_steps=4, multi_step_steps=8)
    one.prepare(doubled(), 3, deterministic=True)
    plan = one.plan
    assert plan is not None and plan.method in ("reverse", "mixed")
    for step, second_order in ((0, False), (3, False), (4, True), (7, True)):
        share = (1 - step / 8) / 3
        weights = [share, share, 1 - 2 * share]
        _, grads = written_out(one, weights, second_order=second_order)
        found = one.gradient(one.params, doubled(), step=step).grads
        for name, grad in grads.items():
            torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-11)
    assert one.plan is plan


def test_switched_off_it_is_maml() -> None:
    one, tasks = learner(**OFF), doubled()
    alone = MetaLearner(network().double(), one.maml, kind="regression")
    assert one.params.keys() == alone.params.keys()
    wanted = alone.meta_gradient(tasks)
    for step in (0, 200):
        found = one.gradient(one.params, tasks, step=step)
        assert_same(dict(found.grads), dict(wanted.grads))
        assert torch.equal(found.loss, wanted.loss)
    assert torch.equal(one.score(tasks).losses, alone.score(tasks).losses)


def test_rates_start_at_the_inner_step_size_one_for_each_parameter_and_step() -> None:
    one = learner(maml={"learn": "momentum", "inner_momentum": 0.5})
    names = [n for n, _ in one.module.named_parameters()]
    for name in names:
        assert torch.equal(
            one.params[f"learnt.lr.{name}"], torch.full((3,), 0.05, dtype=torch.double)
        )
    assert one.params["learnt.momentum"] == 0.5
    assert len(one.params) == 2 * len(names) + 1


def test_scores_do_not_depend_on_the_order_of_the_support_set() -> None:
    one, (support, query) = learner(), doubled()
    turned = TaskBatch(tree_map(lambda x: x.flip(1), support), query)
    torch.testing.assert_close(
        one.score(turned).losses, one.score(TaskBatch(support, query)).losses
    )


@pytest.mark.parametrize("step", [0, 2, 9])
def test_diagnostics_see_the_tasks_of_the_step(step: int) -> None:
    make = partial(MAMLPlusPlus, multi_step_steps=4, first_order_steps=1)
    maml = MAML(inner_lr=0.05, inner_steps=2, engine="batched")
    trainer = MetaTrainer(network(), WAVES, learner=make, maml=maml, meta_batch=3)
    objective = trainer.loop.objective
    batch = objective.batch(step)
    wanted = objective.gradient(trainer.loop.params, batch, step=step).grads
    source = TaskSource(trainer.learner, clip_norm=1.0, active=lambda: trainer.active)
    ((chunk,),) = source.gradient_units("task", batch, wanted).blocks()
    for name, grad in wanted.items():
        torch.testing.assert_close(chunk[name].mean((0, 1)), grad, rtol=1e-4, atol=1e-5)


def test_members_train_as_alone() -> None:
    make = partial(MAMLPlusPlus, multi_step_steps=2, first_order_steps=1)
    settings: dict[str, Any] = {"steps": 3, "meta_batch": 3, "validation_tasks": 2}
    maml = MAML(inner_lr=0.02, inner_steps=2)
    together = Ensemble.from_factory(network, range(2))
    members = MetaTrainer(together, WAVES, learner=make, maml=maml, **settings)
    members.fit()
    for index in range(2):
        alone = MetaTrainer(network(index), WAVES, learner=make, maml=maml, **settings)
        alone.fit()
        for name, value in alone.learner.params.items():
            found = members.learner.params[name][index]
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("maml", "own", "message"),
    [
        ({}, {"multi_step_steps": 0}, "^multi_step_steps=0: a whole number of at least 1"),
        ({}, {"first_order_steps": -1}, "^first_order_steps=-1: a whole number of at least 0"),
        ({}, {"learn_rates": None}, "^learn_rates=None: true or false is needed"),
        ({"method": "implicit"}, {}, r"^maml\.method='implicit': auto, reverse, mixed or"),
        ({"inner_steps": 0}, {}, r"^maml\.inner_steps=0: at least 1 is needed"),
        (
            {"first_order": True},
            {"first_order_steps": 3},
            r"^first_order_steps=3: 0 is needed with maml\.first_order=true",
        ),
        (
            {"method": "first_order"},
            {"first_order_steps": 3},
            r"^first_order_steps=3: 0 is needed with maml\.first_order=true",
        ),
        ({"learn": "lr"}, {}, r"^maml\.lr_per='all': parameter_and_step is needed; learner\.learn"),
        ({"learn": ["lr"], "lr_per": "step"}, {}, r"^maml\.lr_per='step': parameter_and_step is"),
    ],
)
def test_bad_input(maml: dict[str, Any], own: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        MAMLPlusPlus(network(), MAML(**maml), **own)
