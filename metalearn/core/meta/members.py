"""Gradients of M stacked parameter sets: an ensemble of meta-learners on the same tasks.

Axes: M members, T tasks, K inner steps; a pair is one member on one task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from metalearn.core.ensemble.stacking import member_count, take_member, unstack
from metalearn.core.loss_checks import outside_inference_mode
from metalearn.core.meta.adaptation import Adaptation
from metalearn.core.meta.adapted_task import Implicit
from metalearn.core.meta.engines import Engine, TaskProgram, gradient_of_pairs
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.meta.meta_gradient import GradientThroughAdaptation, Method
from metalearn.core.meta.step_weights import StepWeights
from metalearn.core.meta.task_checks import check_sets, choose_engine
from metalearn.core.meta.task_gradient import TaskLossGradient
from metalearn.core.meta.task_mean import MetaGradient, mean_gradient, mean_over_tasks
from metalearn.core.tree import check_floating, check_like, leaves, tree_map
from metalearn.core.vectorization import vectorizing
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params, TaskBatch

__all__ = ["member_meta_gradient", "member_task_gradient"]


@outside_inference_mode
@checked
def member_meta_gradient(
    loss_fn: LossFn,
    params: Params,
    tasks: TaskBatch,
    *,
    optimizer: InnerOptimizer,
    steps: int,
    method: Method = "auto",
    engine: Engine = "auto",
    chunk_size: int | None = None,
    frozen: str | Sequence[str] | None = None,
    implicit: Implicit | None = None,
    step_weights: StepWeights = None,
    learnt: Any = None,
) -> MetaGradient:
    """The meta-gradient of every member on the same tasks: vmap over members of vmap over tasks.

    Arguments are those of `meta_gradient`: the loss is that of one member, params are
    ``[M, ...]``, and tasks, leaves ``[T, ...]``, are shared by all. ``engine="batched"`` runs all
    M·T pairs as tasks with parameters of their own, ``"vmap"`` nests two vmaps, ``"loop"`` takes
    one pair after another; ``"auto"`` is ``"batched"`` where that can be, else ``"vmap"``. Chunks
    are of tasks, for all members. ``learnt`` are each member's own values of what the inner
    optimiser learns, a tree like ``optimizer.learnt`` with leaves ``[M, ...]``; None has all share
    those of it.

    Returns:
        `MetaGradient` with M in front of every leaf: grads ``[M, ...]``, loss ``[M]``,
        query_losses ``[M, T]``, support_losses ``[M, T, K]``, optimizer_grads ``[M, ...]``.

    Raises:
        SettingError: as `meta_gradient`; leaves of different M; ``engine="batched"`` with an inner
            optimiser of one's own that learns.
    """
    count = member_count(params)
    adaptation = Adaptation(loss_fn, optimizer, steps, frozen)
    first = take_member(params, 0)
    program = GradientThroughAdaptation.of(adaptation, first, method, implicit, step_weights)
    adaptation.check_schedule(first)
    check_sets(tasks, steps)
    chosen = choose_engine(engine, optimizer.elementwise)
    if chosen == "batched" and leaves(optimizer.learnt) and not program.stackable:
        if engine == "batched":
            accepted = "an inner optimiser that learns needs auto, vmap or loop"
            raise SettingError("engine", engine, accepted)
        chosen = "vmap"
    rows = tree_map(lambda v: v.expand(count, *v.shape), program.learnt)
    if learnt is not None:
        check_like(learnt, rows, "learnt")
        check_floating(learnt, "learnt")
        rows = tree_map(Tensor.detach, learnt)
    return _of_members(program, params, tasks, engine=chosen, chunk_size=chunk_size, learnt=rows)


@outside_inference_mode
@checked
def member_task_gradient(
    task_loss: Callable[[Params, Batch, Batch], Any],
    params: Params,
    tasks: TaskBatch,
    *,
    engine: Engine = "auto",
    chunk_size: int | None = None,
    has_aux: bool = False,
) -> MetaGradient:
    """`task_gradient` of every member on the same tasks.

    Args:
        task_loss: of one member and one task, as for `task_gradient`.
        params: leaves ``[M, ...]``.
        tasks: shared by all members, leaves ``[T, ...]``.
        engine: as for `member_meta_gradient`.
        chunk_size: tasks at a time, for all members.
        has_aux: as for `task_gradient`.

    Returns:
        `MetaGradient` with M in front of every leaf: grads ``[M, ...]``, loss ``[M]``,
        query_losses and diagnostics ``[M, T, ...]``.

    Raises:
        SettingError: as `task_gradient`; leaves of different M.
    """
    member_count(params)
    check_floating(params, "params")
    check_sets(tasks, 1)
    program = TaskLossGradient(task_loss, has_aux)
    chosen = choose_engine(engine)
    return _of_members(program, params, tasks, engine=chosen, chunk_size=chunk_size)


def _of_members(
    program: TaskProgram,
    params: Params,
    tasks: TaskBatch,
    *,
    engine: Engine,
    chunk_size: int | None,
    learnt: Any = (),
) -> MetaGradient:
    """The mean over tasks for each member, by an engine that is chosen."""
    learns = bool(leaves(learnt))

    def of_row(row: Params, own: Any, engine: Engine) -> MetaGradient:
        one = program.with_learnt(own) if learns else program
        return mean_gradient(one, row, tasks, engine=engine, chunk_size=chunk_size)

    def loop() -> MetaGradient:
        owns = unstack(learnt) if learns else [()] * member_count(params)
        parts = [of_row(row, own, "loop") for row, own in zip(unstack(params), owns)]
        joined: MetaGradient = tree_map(lambda *values: torch.stack(values), *parts)
        return joined

    if engine == "loop":
        return loop()
    with vectorizing("engine", engine, loop):
        if engine == "vmap":
            each: MetaGradient = vmap(partial(of_row, engine="vmap"))(params, learnt)
            return each
        pairs = partial(gradient_of_pairs, program, learnt=learnt)
        return mean_over_tasks(pairs, params, tasks, chunk_size, axis=1)
