"""TracIn over tasks against meta-gradients one by one, and what a meta-step does.

Axes: C checkpoints, R targets, T tasks.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.attribution import task_scores
from metalearn.core import sgd, task_gradient, task_meta_gradients
from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.trainers import LEARNERS
from metalearn.types import TaskBatch
from tests.contracts.test_learners import batches, learner, network
from tests.support.attribution_oracles import chosen, others
from tests.support.oracles import Problem, maml, meta_loss, sgd_rule
from tests.support.task_attribution import few_shot

close = torch.testing.assert_close
RATES = [0.1, 0.03, 0.5]


def known(tasks: int = 5) -> Problem:
    shot = few_shot(tasks=tasks)
    return Problem(lambda p, b: shot.losses_fn(p, b).mean(), shot.params, shot.tasks)


def parts(tasks: TaskBatch, targets: int = 2) -> tuple[TaskBatch, TaskBatch]:
    """The first R tasks as targets, and the others."""
    return tree_map(lambda x: x[:targets], tasks), tree_map(lambda x: x[targets:], tasks)


def one_task(problem: Problem, t: int) -> Problem:
    return problem._replace(tasks=tree_map(lambda x: x[t : t + 1], problem.tasks))


def gradients(problem: Problem) -> Any:
    return partial(task_meta_gradients, problem.loss_fn, optimizer=sgd(0.4), steps=2)


def rows(problem: Problem, params: Any, mask: Any = ...) -> Tensor:
    """Meta-gradients ``[T, P]``, one after another."""
    found = []
    for t in range(len(problem.tasks.query[1])):
        grads, *_ = maml(one_task(problem._replace(params=params), t), sgd_rule(0.4), 2)
        found.append(torch.cat([g.reshape(-1) for g in grads.values()]))
    return torch.stack(found)[:, mask]


def scores(problem: Problem, **settings: Any) -> Tensor:
    given: Any = {"learning_rates": [1.0], **settings}
    checkpoints = given.pop("checkpoints", [problem.params])
    return task_scores(gradients(problem), checkpoints, *parts(problem.tasks), **given)


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 100, "auto"])
@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_the_sum_over_checkpoints_is_that_of_loops(chunk_size: Any, metric: Any) -> None:
    problem = known()
    checkpoints, expected = others(problem.params, 3), torch.zeros(2, 3, dtype=torch.float64)
    for params, rate in zip(checkpoints, RATES):
        found = rows(problem, params)
        if metric == "cosine":
            found = found / found.norm(dim=1, keepdim=True)
        expected += rate * found[:2] @ found[2:].mT
    found = scores(
        problem, checkpoints=checkpoints, learning_rates=RATES, metric=metric, chunk_size=chunk_size
    )
    close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("parameters", ["2.*", ["2.weight", "2.bias"]])
@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_chosen_parameters_count_alone(parameters: Any, metric: Any) -> None:
    problem = known()
    found = rows(problem, problem.params, chosen(problem.params, "2."))
    if metric == "cosine":
        found = found / found.norm(dim=1, keepdim=True)
    close(scores(problem, parameters=parameters, metric=metric), found[:2] @ found[2:].mT)


def test_it_is_what_a_small_step_on_one_task_does_to_a_query_loss() -> None:
    problem, rate = known(), 1e-5
    found = scores(problem, learning_rates=[rate])
    for t in range(3):
        grads, *_ = maml(one_task(problem, 2 + t), sgd_rule(0.4), 2)
        moved = {n: p - rate * grads[n] for n, p in problem.params.items()}
        for r in range(2):
            target = one_task(problem, r)
            fall = meta_loss(target, sgd_rule(0.4), 2) - meta_loss(
                target._replace(params=moved), sgd_rule(0.4), 2
            )
            close(float(found[r, t]) / rate, fall / rate, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("engine", ["loop", "vmap", "batched"])
def test_every_learner_gives_the_gradients_that_it_trains_with(name: str, engine: str) -> None:
    tasks, one = batches(name), learner(name, network(name, 0), engine)
    found = task_scores(one.task_gradients, [one.params], tasks, tasks, learning_rates=[2.0])
    each = []
    for t in range(3):
        grads = one.meta_gradient(tree_map(lambda x, t=t: x[t : t + 1], tasks)).grads
        each.append(torch.cat([g.reshape(-1) for g in grads.values()]))
    close(found, 2 * torch.stack(each) @ torch.stack(each).mT, rtol=1e-8, atol=1e-12)


def test_a_gradient_of_zero_has_a_cosine_of_zero() -> None:
    problem = known()

    def first_is_zero(params: Any, tasks: TaskBatch) -> Any:
        grads = gradients(problem)(params, tasks)
        return tree_map(lambda g: torch.cat([torch.zeros_like(g[:1]), g[1:]]), grads)

    found = task_scores(
        first_is_zero, [problem.params], problem.tasks, problem.tasks,
        learning_rates=[1.0], metric="cosine", chunk_size=None,
    )  # fmt: skip
    close(found.diagonal(), torch.tensor([0.0, 1, 1, 1, 1], dtype=torch.float64))
    assert not found[0].any() and not found[:, 0].any()


def test_members_are_scored_under_vmap() -> None:
    problem = known()
    many = others(problem.params, 2)
    stacked = {n: torch.stack([one[n] for one in many]) for n in problem.params}

    def of(params: Any) -> Tensor:
        return scores(problem, checkpoints=[params], chunk_size=2)

    close(torch.vmap(of)(stacked), torch.stack([of(one) for one in many]))


def test_numbers_that_are_learnt_beside_the_weights_count_too() -> None:
    one = learner("maml_learns_rates", network("maml", 0), "vmap")
    tasks = batches("maml_learns_rates")
    with_rates = task_scores(one.task_gradients, [one.params], tasks, tasks, learning_rates=[1.0])
    weights = [name for name in one.params if not name.startswith("learnt.")]
    without = task_scores(
        one.task_gradients, [one.params], tasks, tasks, learning_rates=[1.0], parameters=weights
    )
    assert (with_rates - without).abs().max() > 1e-6


def mean_of_tasks(params: Any, tasks: TaskBatch) -> Any:
    loss_fn = known().loss_fn
    return task_gradient(lambda p, s, q: loss_fn(p, q), params, tasks).grads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradients_fn": None}, "gradients_fn=None: a function of 2 arguments"),
        ({"gradients_fn": lambda p, t: None}, "gradients_fn='NoneType': a torch.Tensor"),
        (
            {"gradients_fn": mean_of_tasks},
            r"gradients_fn='leaves of length \[3, 6\]': leaves \[\d, ...\] are needed, a gradient",
        ),
        ({"gradients_fn": lambda p, t: torch.ones(())}, "gradients_fn='leaves of length"),
        ({"checkpoints": []}, "checkpoints=0: at least one is needed"),
        ({"learning_rates": [1.0, 2.0]}, "learning_rates=2: one for each of 1 checkpoints"),
        ({"learning_rates": [-1.0]}, r"learning_rates\[0\]=-1.0: "),
        ({"metric": "l2"}, "metric='l2': one of cosine, dot is needed"),
        ({"targets": None}, "targets=None: a TaskBatch is needed"),
        ({"tasks": TaskBatch((), ())}, "tasks={}: the same number"),
        ({"parameters": "head.*"}, r"parameters='head.\*': a pattern that matches"),
        ({"chunk_size": 0}, "chunk_size=0: a whole number of at least 1"),
        ({"chunk_size": 1, "memory": "1GB"}, "memory='1GB': it goes with chunk_size"),
        ({"memory": 1}, "memory=1: one task takes"),
    ],
)
def test_mistakes_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    problem = known()
    targets, tasks = parts(problem.tasks)
    given = {
        "gradients_fn": gradients(problem),
        "checkpoints": [problem.params],
        "targets": targets,
        "tasks": tasks,
        "learning_rates": [1.0],
    }
    with pytest.raises(SettingError, match=message):
        task_scores(**{**given, **changes})
