"""Gradients of learners that descend the loss of a task as it is, and how they are taken.

Axes: M members, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from metalearn.core import MetaGradient, Plan, plan_task_gradient
from metalearn.core.checks import call_given
from metalearn.errors import check_whole
from metalearn.trainers.loop.pure_calls import keyed, plain_attributes
from metalearn.trainers.meta.method_checks import (
    CheckedLearner,
    check_outputs,
    of_task,
    predicted,
    states_of,
)
from metalearn.trainers.meta.network import LearnerNetwork
from metalearn.types import Batch, Params, TaskBatch, TaskLoss

__all__ = ["loss_gradient", "plan_of_loss", "plan_of_one", "purely", "query_loss"]


def query_loss(learner: CheckedLearner, params: Params, support: Batch, query: Batch) -> Tensor:
    """Mean loss of one task's queries in the last state of `Learner.fit` in training."""
    *_, state = states_of(learner, params, support, learner.inner_steps)
    outputs = predicted(learner, state, query[0])
    check_outputs(learner, outputs, query[1])
    return learner.criterion(of_task(learner, outputs, support[1]), query[1])


def loss_gradient(learner: Any, params: Params, tasks: TaskBatch) -> MetaGradient:
    """The mean over T tasks of the gradient of `Learner.task_loss`, of every network."""
    engine, chunk_size = learner.batching
    how: Any = {"engine": engine, "chunk_size": chunk_size}
    taken = partial(learner.network.task_gradient, learner.task_loss, **how)
    return purely(learner, taken, params, tasks)


def purely(learner: Any, function: Callable[..., Any], *trees: Any) -> MetaGradient:
    """What a function of parameters and tasks gives, by the learner's pure calls.

    It depends on the number of classes that `Criterion.check` found as well, and on numbers and
    names that the learner has as attributes.
    """
    keys = learner.criterion.classes, plain_attributes(learner)
    found: MetaGradient = learner.pure(keyed(function, *keys), *trees)
    return found


def plan_of_loss(
    task_loss: TaskLoss,
    network: LearnerNetwork,
    tasks: TaskBatch,
    *,
    task_count: int,
    check: Callable[[], None],
    **how: Any,
) -> Plan:
    """How gradients of a loss of tasks are taken, by trials on ``tasks``.

    Args:
        task_loss: of one task.
        network: one, or M.
        tasks: two are enough.
        task_count: T of the gradients to come.
        check: called in every trial; what it raises ends them.
        how: further keywords of `metalearn.core.plan_task_gradient`.
    """
    check_whole("task_count", task_count, 1)

    def loss(params: Params, support: Batch, query: Batch) -> Any:
        check()
        return call_given(task_loss, "task_loss", params, support, query)

    count = task_count * (network.count or 1)
    plan = plan_task_gradient(loss, network.rows()[0], tasks, task_count=count, **how)
    return plan_of_one(plan, network)


def plan_of_one(plan: Plan, network: LearnerNetwork) -> Plan:
    """A plan for one network's share of all pairs of member and task, as one for tasks.

    What only the loop can take is said.
    """
    if network.only_loop:
        plan = replace(plan, notes=(network.only_loop, *plan.notes))
    count = network.count
    if count is None:
        return plan
    if plan.chunk_size is not None:
        plan = replace(plan, chunk_size=max(1, plan.chunk_size // count))
    return replace(plan, notes=(f"each of {count} members", *plan.notes))
