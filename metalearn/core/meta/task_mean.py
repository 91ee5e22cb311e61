"""From what an engine finds for some tasks at a time to the mean over all.

Axes: M members, T tasks, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.core.memory import keep_freed_memory
from metalearn.core.meta.engines import ENGINES, Engine, TaskProgram, TaskSums
from metalearn.core.meta.task_checks import check_chunk
from metalearn.core.tree import add_scaled, leaves, scale, tree_map
from metalearn.core.vectorization import vectorizing
from metalearn.types import Params, TaskBatch

__all__ = ["MetaGradient", "chunks_of_tasks", "detached", "mean_gradient", "mean_over_tasks"]


class MetaGradient(NamedTuple):
    """What `meta_gradient` and `task_gradient` give."""

    grads: Params
    """Mean over tasks of the gradient of the query loss, a tree like the parameters."""
    loss: Tensor
    """Mean query loss, a scalar."""
    query_losses: Tensor
    """``[T]``: query loss of each task after adaptation."""
    support_losses: Tensor
    """``[T, K]``: support loss of each task before each inner step."""
    optimizer_grads: Any
    """Mean over tasks of the gradient of what the inner optimiser learns, a tree like
    ``optimizer.learnt``."""
    diagnostics: dict[str, Tensor]
    """``[T, ...]`` each, by name: how well the implicit method converged (``cg_residual``,
    ``stationarity``); what a task loss gives beside its value."""


def mean_gradient(
    program: TaskProgram,
    params: Params,
    tasks: TaskBatch,
    *,
    engine: Engine,
    chunk_size: int | None,
) -> MetaGradient:
    """The mean over tasks of what the program finds, by an engine, some tasks at a time.

    Raises:
        VectorizationError: a loss that vmap cannot take and ``engine="loop"`` can.
    """

    def run(engine: Engine) -> MetaGradient:
        return mean_over_tasks(partial(ENGINES[engine], program), params, tasks, chunk_size)

    with vectorizing("engine", engine, partial(run, "loop")):
        return run(engine)


def mean_over_tasks(
    run: Callable[[Params, TaskBatch], TaskSums],
    params: Params,
    tasks: TaskBatch,
    chunk_size: int | None,
    *,
    axis: int = 0,
) -> MetaGradient:
    """What an engine gives for all tasks, some at a time; losses have tasks along ``axis``."""
    count = len(leaves(tasks)[0])
    check_chunk(chunk_size)
    params = detached(params)
    parts = [run(params, chunk) for chunk in chunks_of_tasks(tasks, count, chunk_size)]
    return _mean(parts, count, axis)


def chunks_of_tasks(tasks: TaskBatch, count: int, chunk_size: int | None) -> Iterator[TaskBatch]:
    """The T = ``count`` tasks in chunks; None takes all at once."""
    size = chunk_size or count
    for start in range(0, count, size):
        yield tree_map(lambda x, s=start: x[s : s + size], tasks)


def detached(params: Params) -> Params:
    """Parameters without a graph, and memory that is reused."""
    if any(leaf.device.type == "cpu" for leaf in leaves(params)):
        keep_freed_memory()
    return tree_map(Tensor.detach, params)


def _mean(parts: Sequence[TaskSums], count: int, axis: int) -> MetaGradient:
    """Chunks put together."""
    grads, learnt = parts[0].grads, parts[0].optimizer_grads
    for part in parts[1:]:
        grads = add_scaled(grads, part.grads, 1.0)
        learnt = add_scaled(learnt, part.optimizer_grads, 1.0)

    def joined(values: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(values), axis).detach()

    query = joined([part.query_losses for part in parts])
    result = MetaGradient(
        scale(grads, 1 / count),
        query.mean(axis),
        query,
        joined([part.support_losses for part in parts]),
        scale(learnt, 1 / count),
        {name: joined([p.diagnostics[name] for p in parts]) for name in parts[0].diagnostics},
    )
    found: MetaGradient = tree_map(Tensor.detach, result)
    return found
