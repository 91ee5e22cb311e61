"""The gradient of every single task, whose mean over tasks is that of `meta_gradient`.

Axes: T tasks, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.core.loss_checks import outside_inference_mode
from metalearn.core.meta.adaptation import Adaptation
from metalearn.core.meta.adapted_task import Implicit
from metalearn.core.meta.engines import (
    Engine,
    TaskProgram,
    gradient_of_tasks,
    structural_engine,
)
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.meta.meta_gradient import GradientThroughAdaptation, Method
from metalearn.core.meta.step_weights import StepWeights
from metalearn.core.meta.task_axis import one_by_one, stacked_over_tasks
from metalearn.core.meta.task_checks import check_engine, check_sets
from metalearn.core.meta.task_gradient import TaskLossGradient
from metalearn.core.meta.task_mean import mean_gradient
from metalearn.core.tree import check_floating, leaves, tree_map, unflatten
from metalearn.core.vectorization import vectorizing
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params, TaskBatch

__all__ = ["task_loss_gradients", "task_meta_gradients"]


@outside_inference_mode
@checked
def task_meta_gradients(
    loss_fn: LossFn,
    params: Params,
    tasks: TaskBatch,
    *,
    optimizer: InnerOptimizer,
    steps: int,
    method: Method = "auto",
    engine: Engine = "auto",
    frozen: str | Sequence[str] | None = None,
    implicit: Implicit | None = None,
    step_weights: StepWeights = None,
    with_learnt: bool = False,
) -> Any:
    """D L(θ_K(θ), query_t) / dθ of every task t, leaves ``[T, ...]``; arguments as `meta_gradient`.

    All T are held at once: hand over a few tasks at a time.

    Returns:
        A tree like ``params``; ``with_learnt``, a pair of it and of a tree like
        ``optimizer.learnt``.

    Raises:
        SettingError: as `meta_gradient`.
    """
    adaptation = Adaptation(loss_fn, optimizer, steps, frozen)
    program = GradientThroughAdaptation.of(adaptation, params, method, implicit, step_weights)
    adaptation.check_schedule(params)
    check_engine(engine)
    check_sets(tasks, steps)
    grads, learnt = _every(program, params, tasks, engine, optimizer.elementwise, with_learnt)
    return (grads, learnt) if with_learnt else grads


@outside_inference_mode
@checked
def task_loss_gradients(
    task_loss: Callable[[Params, Batch, Batch], Any],
    params: Params,
    tasks: TaskBatch,
    *,
    engine: Engine = "auto",
) -> Params:
    """The gradient of every task's loss, leaves ``[T, ...]``; arguments as `task_gradient`.

    All T are held at once: hand over a few tasks at a time.

    Raises:
        SettingError: as `task_gradient`.
    """
    check_floating(params, "params")
    check_engine(engine)
    check_sets(tasks, 1)
    program = TaskLossGradient(task_loss, has_aux=False)
    return _every(program, params, tasks, engine, elementwise=True, with_learnt=False)[0]


def _every(
    program: TaskProgram,
    params: Params,
    tasks: TaskBatch,
    engine: Engine,
    elementwise: bool,
    with_learnt: bool,
) -> tuple[Params, Any]:
    """Gradients of every task, and those of what is learnt; without it, of nothing."""
    params = tree_map(Tensor.detach, params)
    found, _ = structural_engine(elementwise)
    chosen = found if engine == "auto" else engine

    def one(task: TaskBatch, engine: Engine) -> Any:
        alone = tree_map(lambda x: x[None], task)
        found = mean_gradient(program, params, alone, engine=engine, chunk_size=None)
        return found.grads, found.optimizer_grads if with_learnt else ()

    def loop() -> Any:
        rows = [one(task, "loop") for task in one_by_one(tasks)]
        return tree_map(lambda *values: torch.stack(values), *rows)

    if chosen == "loop":
        return tuple(loop())  # type: ignore[return-value]
    learns = with_learnt and bool(leaves(program.learnt))
    with vectorizing("engine", chosen, loop):
        if chosen != "batched" or found != "batched" or (learns and not program.stackable):
            return tuple(torch.vmap(lambda task: one(task, "vmap"))(tasks))  # type: ignore[return-value]
        rows = stacked_over_tasks(program.learnt, tasks) if learns else ()
        apart = program.with_learnt(rows, stacked=True) if learns else program
        result, spec = gradient_of_tasks(apart, params, tasks)
        grads = unflatten([g.detach() for g in result.grads], spec)
        return grads, tree_map(Tensor.detach, result.optimizer_grads)
