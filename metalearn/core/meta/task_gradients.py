"""The meta-gradient of every single task, whose mean over tasks is that of `meta_gradient`.

Axes: T tasks, K inner steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.core.checks import outside_inference_mode
from metalearn.core.meta.adapt import check_inner
from metalearn.core.meta.engines import Engine, Inner, gradient_of_tasks, structural_engine
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.meta.meta_gradient import (
    Method,
    check_engine,
    check_meta,
    check_sets,
    meta_gradient,
)
from metalearn.core.meta.methods import Implicit
from metalearn.core.tree import leaves, tree_map, unflatten
from metalearn.core.vectorization import vectorizing
from metalearn.signatures import checked
from metalearn.types import LossFn, Params, TaskBatch

__all__ = ["task_meta_gradients"]


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
) -> Params:
    """D L(θ_K(θ), query_t) / dθ of every task t, leaves ``[T, ...]``; arguments as `meta_gradient`.

    All T are held at once: hand over a few tasks at a time.

    Raises:
        SettingError: as `meta_gradient`.
    """
    check_inner(params, steps)
    check_engine(engine)
    params = tree_map(Tensor.detach, params)
    check_sets(tasks, steps)
    settings: dict[str, Any] = {
        "optimizer": optimizer, "steps": steps, "method": method, "frozen": frozen,
        "implicit": implicit,
    }  # fmt: skip
    found, _ = structural_engine(optimizer)
    chosen = found if engine == "auto" else engine

    def one(task: TaskBatch, engine: Engine) -> Params:
        alone = tree_map(lambda x: x[None], task)
        return meta_gradient(loss_fn, params, alone, engine=engine, **settings).grads

    def loop() -> Params:
        count = len(leaves(tasks)[0])
        rows = [one(tree_map(lambda x, t=t: x[t], tasks), "loop") for t in range(count)]
        return tree_map(lambda *values: torch.stack(values), *rows)

    if chosen == "loop":
        return loop()
    with vectorizing("engine", chosen, loop):
        if chosen != "batched" or found != "batched":
            return torch.vmap(lambda task: one(task, "vmap"))(tasks)
        inner = Inner.of(loss_fn, optimizer, steps, frozen)
        result, spec = gradient_of_tasks(
            *check_meta(inner, params, method, implicit), inner, params, tasks
        )
        return unflatten([g.detach() for g in result.grads], spec)
