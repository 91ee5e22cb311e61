"""What is decided once in a training: engine, method, chunks; and what would fit memory.

Axes: T tasks.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from metalearn.core import Plan, plan_meta_gradient
from metalearn.core.memory import describe_bytes
from metalearn.core.tree import leaves, tree_map
from metalearn.errors import SettingError
from metalearn.trainers.loop.plans import memory_budget
from metalearn.trainers.meta.settings import MAML
from metalearn.types import LossFn, Params, TaskBatch

__all__ = ["plan_of_adaptation", "planned", "what_fits"]

_PLANNED = ("engine", "method", "chunk_size")


def planned(plan: Plan | None) -> dict[str, Any]:
    """What a plan decides, as keyword arguments of `metalearn.core.meta_gradient`."""
    return {name: getattr(plan, name) for name in _PLANNED} if plan else {}


def plan_of_adaptation(
    maml: MAML,
    loss: LossFn,
    params: Params,
    tasks: TaskBatch,
    *,
    task_count: int,
    settings: Mapping[str, Any],
    deterministic: bool = False,
) -> Plan:
    """Decide what ``maml`` leaves to ``"auto"``, by trials on ``tasks``.

    Args:
        maml: says what memory there is.
        loss: of one task's batch.
        params: where trials start.
        tasks: two are enough.
        task_count: T of the meta-gradients to come.
        settings: keyword arguments of `metalearn.core.meta_gradient`.
        deterministic: whether to leave out of it what memory is free; ``maml.memory`` counts.

    Raises:
        SettingError: nothing fits ``maml.memory``; those of ``maml`` are named ``maml.<name>``.
    """
    budget = memory_budget(maml.memory, leaves(params)[0].device, deterministic=deterministic)
    try:
        return plan_meta_gradient(
            loss,
            params,
            tasks,
            memory=budget,
            task_count=task_count,
            deterministic=deterministic,
            **settings,
        )
    except SettingError as error:
        if not hasattr(maml, error.setting):
            raise
        raise SettingError(f"maml.{error.setting}", error.value, error.accepted) from error


def what_fits(
    maml: MAML,
    loss: LossFn,
    params: Params,
    tasks: TaskBatch,
    *,
    plan: Plan | None,
    settings: Mapping[str, Any],
) -> str:
    """A sentence for a meta-gradient that ran out of memory."""
    count = len(leaves(tasks)[0])
    now = plan or Plan(maml.engine, maml.method, maml.chunk_size)
    few = tree_map(lambda x: x[:2], tasks)
    exact = {**settings, "chunk_size": None}
    if not maml.first_order and maml.method in ("auto", "reverse"):
        exact["method"] = "auto"
    search = partial(plan_meta_gradient, loss, params, few, task_count=count)
    size = now.chunk_size or count
    head = f"out of memory with method {now.method}, {size} of {count} tasks at a time"
    try:
        whole = search(memory=sys.maxsize, **{**exact, "method": now.method}).peak or 0
        fitting = search(memory=int(whole * size / count / 2), **exact)
    except (SettingError, MemoryError, RuntimeError):
        return f"{head}; maml.method=mixed with maml.chunk_size=1 takes least"
    return (
        f"{head}; about {describe_bytes(fitting.peak or 0)} would do with "
        f"maml.method={fitting.method} maml.chunk_size={fitting.chunk_size or count}"
    )
