"""What is refused of tasks, engines and chunks, wherever tasks are batched.

Axes: T tasks.
"""

from __future__ import annotations

from typing import get_args

from metalearn.core.checks import check_samples
from metalearn.core.meta.engines import Engine, structural_engine
from metalearn.core.tree import check_tensors, leaves
from metalearn.errors import SettingError, check_whole
from metalearn.types import TaskBatch

__all__ = ["check_chunk", "check_engine", "check_sets", "choose_engine"]


def check_sets(tasks: TaskBatch, steps: int) -> int:
    """T; refuses sets without samples, where ``steps`` looks at them."""
    count = _task_count(tasks)
    check_samples(tasks.query, "query")
    if steps:
        check_samples(tasks.support, "support")
    return count


def choose_engine(engine: Engine, elementwise: bool = True) -> Engine:
    """The engine to use: what is asked for, or the fastest that can be.

    Args:
        engine: what is asked for.
        elementwise: whether everything between losses is, as most inner optimisers are.

    Raises:
        SettingError: an unknown one, or ``batched`` where it cannot be.
    """
    check_engine(engine)
    found, reason = structural_engine(elementwise)
    if engine == "batched" != found:
        raise SettingError("engine", engine, f"{reason}; auto, vmap or loop is needed here")
    return found if engine == "auto" else engine


def check_engine(engine: Engine) -> None:
    """Refuse an unknown engine."""
    if engine not in get_args(Engine):
        raise SettingError("engine", engine, f"one of {', '.join(get_args(Engine))} is needed")


def check_chunk(chunk_size: int | None) -> None:
    """Refuse what is no number of tasks at a time."""
    if chunk_size is not None:
        check_whole("chunk_size", chunk_size, 1)


def _task_count(tasks: TaskBatch) -> int:
    """T, which all leaves of support and query must share."""
    for name, part in (("support", tasks.support), ("query", tasks.query)):
        check_tensors(part, name)
    sizes = {int(leaf.shape[0]) if leaf.ndim else 0 for leaf in leaves(tasks)}
    if len(sizes) != 1 or 0 in sizes:
        raise SettingError(
            "tasks",
            sorted(sizes),
            "every leaf of support and query needs the same leading task axis of at least 1",
        )
    return sizes.pop()
