"""Leaves with a task axis in front: made, taken apart and summed, in the memory order that suits.

Axes: M members, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from metalearn.core.tree import leaves, tree_map
from metalearn.types import Params, TaskBatch

__all__ = ["for_every_task", "one_by_one", "stacked_over_tasks", "sum_over_tasks", "task_count"]


def task_count(tasks: TaskBatch) -> int:
    """T of tasks that are checked."""
    return int(leaves(tasks)[0].shape[0])


def one_by_one(tasks: TaskBatch) -> Iterator[TaskBatch]:
    """Each task alone."""
    for t in range(task_count(tasks)):
        yield tree_map(lambda x, t=t: x[t], tasks)


def stacked_over_tasks(params: Params, tasks: TaskBatch) -> Params:
    """The same parameters for every task, ``[T, ...]``, without a copy for each."""
    count = task_count(tasks)
    return tree_map(lambda v: _in_reading_order(v).expand(count, *v.shape), params)


def for_every_task(leaf: Tensor, count: int) -> Tensor:
    """``[M, ...]`` as ``[M·T, ...]``, a member's row once for each task."""
    if leaf.dim() == 5:  # see _in_reading_order
        ordered = leaf.permute(0, 1, 3, 4, 2)
        repeated = ordered[:, None].expand(-1, count, *ordered.shape[1:]).flatten(0, 1)
        return repeated.permute(0, 1, 4, 2, 3)
    return leaf[:, None].expand(-1, count, *leaf.shape[1:]).flatten(0, 1)


def sum_over_tasks(grad: Tensor) -> Tensor:
    """Sum over the leading axis, in the order of memory, then in that of the leaf."""
    order = sorted(range(1, grad.dim()), key=grad.stride, reverse=True)
    back = [order.index(dim) for dim in range(1, grad.dim())]
    return grad.permute(0, *order).sum(0).permute(back).contiguous()


def _in_reading_order(leaf: Tensor) -> Tensor:
    """The same leaf; if it may be the weight of a convolution, its memory in the order of columns.

    Gradients and updates then come in that order too, and no step has to reorder weights.
    """
    if leaf.dim() != 4:
        return leaf
    return leaf.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
