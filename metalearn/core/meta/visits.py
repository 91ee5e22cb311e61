"""What is to be seen at every point of the inner loop, of every task.

Axes: T tasks, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.func import vmap

from metalearn.core.autodiff.backend import Eager, Functional
from metalearn.core.checks import call_given
from metalearn.core.loss_checks import outside_inference_mode
from metalearn.core.meta.adaptation import Adaptation
from metalearn.core.meta.engines import Engine, over_tasks
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.meta.task_axis import one_by_one, stacked_over_tasks
from metalearn.core.meta.task_checks import check_chunk, check_sets, choose_engine
from metalearn.core.meta.task_mean import chunks_of_tasks, detached
from metalearn.core.tree import check_floating, check_tensors, tree_map
from metalearn.core.vectorization import vectorizing
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params, TaskBatch

__all__ = ["along_adaptation"]

Visit = Callable[[Params, Batch, Batch], Any]


@outside_inference_mode
@checked
def along_adaptation(
    visit: Callable[[Params, Batch, Batch], Any],
    loss_fn: LossFn,
    params: Params,
    tasks: TaskBatch,
    *,
    optimizer: InnerOptimizer,
    steps: int,
    engine: Engine = "auto",
    chunk_size: int | None = None,
    frozen: str | Sequence[str] | None = None,
) -> Any:
    """``visit(θ_k, support, query)`` at θ_0 … θ_K of every task; leaves ``[T, K+1, ...]``.

    ``visit`` is written for one task. Nothing is differentiable. The other arguments and errors
    are those of `meta_gradient`.
    """
    adaptation = Adaptation(loss_fn, optimizer, steps, frozen).detached()
    check_floating(params, "params")
    count = check_sets(tasks, steps)
    check_chunk(chunk_size)
    engine = choose_engine(engine, optimizer.elementwise)
    params = detached(params)

    def visited(*point: Any) -> Any:
        found = call_given(visit, "visit", *point)
        check_tensors(found, "visit")
        return found

    def run(engine: Engine) -> Any:
        parts = [
            _VISITS[engine](visited, adaptation, params, chunk)
            for chunk in chunks_of_tasks(tasks, count, chunk_size)
        ]
        return tree_map(lambda *xs: torch.cat(xs).detach(), parts[0], *parts[1:])

    with vectorizing("engine", engine, partial(run, "loop")):
        return run(engine)


def _visit_batched(visit: Visit, adaptation: Adaptation, params: Params, tasks: TaskBatch) -> Any:
    start = stacked_over_tasks(params, tasks)
    loop = adaptation.loop(params, Eager(), over_tasks, lead=1)
    points = loop.walk(start, tasks.support, adaptation.steps, differentiable=False)
    found = [over_tasks(visit)(point.params, *tasks) for point in points]
    return tree_map(lambda *xs: torch.stack(xs, 1), found[0], *found[1:])


def _visit_vmapped(visit: Visit, adaptation: Adaptation, params: Params, tasks: TaskBatch) -> Any:
    def one(params: Params, support: Batch, query: Batch) -> Any:
        points = adaptation.trajectory(params, support, backend=Functional())
        found = [visit(point.params, support, query) for point in points]
        return tree_map(lambda *xs: torch.stack(xs), found[0], *found[1:])

    return vmap(one, in_dims=(None, 0, 0))(params, *tasks)


def _visit_looped(visit: Visit, adaptation: Adaptation, params: Params, tasks: TaskBatch) -> Any:
    rows = []
    for task in one_by_one(tasks):
        points = adaptation.trajectory(params, task.support, backend=Eager())
        found = [visit(point.params, *task) for point in points]
        rows.append(tree_map(lambda *xs: torch.stack(xs), found[0], *found[1:]))
    return tree_map(lambda *xs: torch.stack(xs), rows[0], *rows[1:])


_VISITS: dict[str, Callable[[Visit, Adaptation, Params, TaskBatch], Any]] = {
    "batched": _visit_batched,
    "vmap": _visit_vmapped,
    "loop": _visit_looped,
}
