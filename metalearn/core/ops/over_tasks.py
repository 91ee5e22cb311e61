"""From inside a vmapped function to an operation on tensors that show their task axis.

Axes: T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, cast

import torch
from torch import Tensor
from torch._C import DisableTorchFunction
from torch.autograd import Function

from metalearn.core._functorch import (
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    maybe_get_bdim,
    maybe_get_level,
    temporarily_clear_interpreter_stack,
)
from metalearn.core.precision import without_autocast

__all__ = [
    "OperationCount",
    "carries_tasks",
    "counting_operations",
    "first_row",
    "has_task_axis",
    "outside_transforms",
    "over_tasks",
    "task_count",
    "typed_as_forward",
    "unwrap",
]


def over_tasks(function: Callable[..., Tensor], *operands: Any) -> Tensor:
    """``function`` of the same operands with T in front of each tensor, called inside one task.

    Ordinary autograd sees what ``function`` does; vmap does not.
    """
    count = _count.get()
    if count is not None:
        count.operations += 1
    result: Tensor = _OverTasks.apply(function, *operands)
    return result


class OperationCount:
    """How many operations over tasks were called."""

    operations = 0


_count: ContextVar[OperationCount | None] = ContextVar(
    "count of operations over tasks", default=None
)


@contextmanager
def counting_operations() -> Iterator[OperationCount]:
    """Count the operations over tasks that are called meanwhile."""
    token = _count.set(OperationCount())
    try:
        yield cast(OperationCount, _count.get())
    finally:
        _count.reset(token)


def carries_tasks(*operands: Tensor | None) -> bool:
    """Whether any operand has the task axis, and operations over tasks give what torch's would.

    Not under autocast, where types are torch's own affair.
    """
    kinds = {x.device.type for x in operands if x is not None and not x.is_meta}
    return has_task_axis(*operands) and not any(map(torch.is_autocast_enabled, kinds))


def has_task_axis(*operands: Tensor | None) -> bool:
    """Whether any operand has the task axis, the outermost that vmap batches.

    Not where a gradient or a tangent is taken inside the task: autograd and vmap of torch carry
    those, operations over tasks do not.
    """
    found = False
    for operand in operands:
        if operand is not None:
            wrappers, _ = unwrap(operand)
            if not all(map(is_batchedtensor, wrappers)):
                return False
            found = found or (bool(wrappers) and maybe_get_level(wrappers[-1]) == 1)
    return found


def typed_as_forward(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The backward pass of an operation over tasks, without autocast as its forward pass was.

    A loss may leave autocast for a part, whose backward pass is under it all the same.
    """

    @wraps(backward)
    def run(ctx: Any, *cotangents: Tensor | None) -> Any:
        like = next((u for u in cotangents if u is not None), None)
        with nullcontext() if like is None else without_autocast(like):
            return backward(ctx, *cotangents)

    return run


def task_count(*operands: Tensor | None) -> int:
    """T of operands that `has_task_axis`."""
    for operand in operands:
        wrappers, plain = unwrap(operand) if operand is not None else ([], None)
        if wrappers and plain is not None:
            return int(plain.shape[maybe_get_bdim(wrappers[-1])])
    return 1


def unwrap(tensor: Tensor) -> tuple[list[Tensor], Tensor]:
    """The wrappers that torch.func put around a tensor, the first level last, and the tensor."""
    wrappers = []
    while is_functorch_wrapped_tensor(tensor):
        wrappers.append(tensor)
        tensor = get_unwrapped(tensor)
    return wrappers, tensor


def first_row(tensor: Tensor) -> Tensor:
    """One task's (sample's, member's) value of a tensor inside transforms, as an ordinary tensor.

    To be called inside `outside_transforms`.
    """
    wrappers, plain = unwrap(tensor)
    for wrapper in reversed(wrappers):
        if is_batchedtensor(wrapper):
            plain = plain.select(maybe_get_bdim(wrapper), 0)
    return plain


@contextmanager
def outside_transforms() -> Iterator[None]:
    """Run the block as if no transform of torch.func and no function mode were in force."""
    with temporarily_clear_interpreter_stack(), DisableTorchFunction():
        yield


class _OverTasks(Function):
    """A function of tensors with a task axis, called under vmap from inside one task."""

    @staticmethod
    def forward(function: Callable[..., Tensor], *operands: Any) -> Tensor:
        raise RuntimeError("an operation over tasks was called where no operand has a task axis")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, function: Any, *operands: Any) -> tuple[Tensor, int]:
        moved = []
        for operand, dim in zip(operands, in_dims[1:]):
            if isinstance(operand, Tensor):
                if dim is None:
                    operand = operand.expand(info.batch_size, *operand.shape)
                else:
                    operand = operand.movedim(dim, 0)
            moved.append(operand)
        if has_task_axis(*moved):  # inside a further vmap: fold the two axes
            return over_tasks(partial(_folded, function, info.batch_size), *moved), 0
        return function(*moved), 0


def _folded(function: Callable[..., Tensor], size: int, *operands: Any) -> Tensor:
    """``function`` over operands ``[T', T, ...]`` with T = ``size``."""
    flat = [x.flatten(0, 1) if isinstance(x, Tensor) else x for x in operands]
    result = function(*flat)
    return result.reshape(-1, size, *result.shape[1:])
