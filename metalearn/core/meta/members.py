"""Meta-gradients of M stacked parameter sets: an ensemble of meta-learners on the same tasks.

Axes: M members, T tasks, K inner steps; a pair is one member on one task.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.func import vmap

from metalearn.core.checks import outside_inference_mode
from metalearn.core.ensemble.stacking import member_count, unstack
from metalearn.core.meta.adapt import check_inner
from metalearn.core.meta.engines import Engine, Inner, gradient_of_pairs
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.meta.meta_gradient import (
    MetaGradient,
    Method,
    check_meta,
    check_sets,
    choose_engine,
    mean_over_tasks,
    meta_gradient,
)
from metalearn.core.meta.methods import Implicit
from metalearn.core.tree import leaves, tree_map
from metalearn.core.vectorization import vectorizing
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.types import LossFn, Params, TaskBatch

__all__ = ["member_meta_gradient"]


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
) -> MetaGradient:
    """The meta-gradient of every member on the same tasks: vmap over members of vmap over tasks.

    Args:
        loss_fn: of one member, as for `meta_gradient`.
        params: leaves ``[M, ...]``.
        tasks: shared by all members, leaves ``[T, ...]``.
        optimizer: the inner optimiser.
        steps: K.
        method: as for `meta_gradient`.
        engine: ``"batched"`` runs all M·T pairs as tasks with parameters of their own, ``"vmap"``
            nests two vmaps, ``"loop"`` takes one pair after another. ``"auto"`` is ``"batched"``
            where that can be, else ``"vmap"``.
        chunk_size: tasks at a time, for all members.
        frozen: as for `meta_gradient`.
        implicit: as for `meta_gradient`.

    Returns:
        `MetaGradient` with M in front of every leaf: grads ``[M, ...]``, loss ``[M]``,
        query_losses ``[M, T]``, support_losses ``[M, T, K]``.

    Raises:
        SettingError: as `meta_gradient`; leaves of different M; ``engine="batched"`` with an inner
            optimiser that learns.
    """
    member_count(params)
    check_inner(params, steps)
    check_sets(tasks, steps)
    settings: dict[str, Any] = {
        "optimizer": optimizer, "steps": steps, "method": method, "chunk_size": chunk_size,
        "frozen": frozen, "implicit": implicit,
    }  # fmt: skip
    chosen = choose_engine(engine, optimizer)
    learns = bool(leaves(optimizer.learnt))
    if learns and engine == "batched":
        accepted = "an inner optimiser that learns needs auto, vmap or loop"
        raise SettingError("engine", engine, accepted)

    def of_row(row: Params, engine: Engine) -> MetaGradient:
        return meta_gradient(loss_fn, row, tasks, engine=engine, **settings)

    def loop() -> MetaGradient:
        return _joined([of_row(row, "loop") for row in unstack(params)])

    if chosen == "loop":
        return loop()
    with vectorizing("engine", engine, loop):
        if chosen == "vmap" or learns:
            each: MetaGradient = vmap(lambda row: of_row(row, "vmap"))(params)
            return each
        inner = Inner.of(loss_fn, optimizer, steps, frozen)
        run = partial(gradient_of_pairs, *check_meta(inner, params, method, implicit), inner)
        return mean_over_tasks(run, params, tasks, chunk_size, axis=1)


def _joined(parts: Sequence[MetaGradient]) -> MetaGradient:
    found: MetaGradient = tree_map(lambda *values: torch.stack(values), *parts)
    return found
