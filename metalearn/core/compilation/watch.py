"""What a function may not do while it is traced, noticed before it is done.

The graph holds what a function does with values, not what it does because of them, or to tensors
that are not its own: a number that is read from a tensor would be that of the tracing for ever.

Axes: none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metalearn.core._functorch import is_functorch_wrapped_tensor
from metalearn.errors import CompilationError

__all__ = ["READS", "watched"]

READS = "it reads the value of a tensor, by .item(), bool() or an if"
_READING = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__)
_SPLITTING = (torch.tensor_split, Tensor.tensor_split)
_SETTING = Tensor.data.__set__  # type: ignore[attr-defined]
_UNKNOWN = -1
"""In place of the storage of a tensor that has none, or is wrapped by a transform."""


@contextmanager
def watched(limit: int) -> Iterator[None]:
    """A block that refuses what a traced function may not do, before anything is changed.

    Args:
        limit: operations of torch, at most.

    Raises:
        CompilationError: a value is read that is not the same at each call; a tensor that was there
            before is written to; random numbers are drawn; or there are more operations.
    """
    operations = _Operations(limit)
    with _Reading(operations), operations:
        yield


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operation with the tensors that hold memory, under all transforms."""

    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = self.limit = limit
        self.made: set[int] = set()
        """Storages that came to be in the block."""
        self.fixed: set[int] = set()
        """Those of them that follow from nothing but numbers, the same at each call."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, if it may be."""
        kwargs = kwargs or {}
        given = _storages((args, kwargs))
        self.left -= 1
        if self.left < 0:
            raise CompilationError(f"it takes more than {self.limit:,} operations")
        if not isinstance(func, torch._ops.OpOverload):
            raise CompilationError("it has a part that is a graph of its own, as control flow is")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise CompilationError(f"it draws random numbers ({func.overloadpacket.__name__})")
        reads = torch.Tag.data_dependent_output in func.tags and given - self.fixed
        if reads or _has_a_shape_by_values(func, args):
            raise CompilationError(READS)
        written = _storages(_written(func, args, kwargs))
        if written - self.made:
            raise CompilationError("it writes to its arguments, or to a tensor from elsewhere")
        found = func(*args, **kwargs)
        new = _storages(found) - given - {_UNKNOWN}
        self.made |= new
        if given <= self.fixed:
            self.fixed |= new
        else:  # what is computed there, or written to, follows from what was given
            self.fixed -= new | written
        return found


class _Reading(TorchFunctionMode):
    """Sees methods that read the memory of a tensor without an operation of torch."""

    def __init__(self, operations: _Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run what does not read."""
        reads = func in _READING or (
            func in _SPLITTING and any(isinstance(value, Tensor) for value in args[1:])
        )
        if reads and not _storages(args) <= self.operations.fixed:
            raise CompilationError(READS)
        if func == _SETTING:
            raise CompilationError("it sets the data of a tensor")
        return func(*args, **(kwargs or {}))


def _has_a_shape_by_values(func: Any, args: Sequence[Any]) -> bool:
    """Whether the shape that an operation gives follows from the values that it gets."""
    if func is torch.ops.aten.index.Tensor:  # of indices only masks
        return any(v is not None and v.dtype in (torch.bool, torch.uint8) for v in args[1])
    return torch.Tag.dynamic_output_shape in func.tags


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor that holds memory of its own."""
    return (
        isinstance(value, Tensor)
        and not is_functorch_wrapped_tensor(value)
        and value.layout == torch.strided
    )


def _storages(tree: Any) -> set[int]:
    """Where the tensors of a tree have their values."""
    tensors = [value for value in tree_leaves(tree) if isinstance(value, Tensor)]
    return {int(v.untyped_storage()._cdata) if _is_plain(v) else _UNKNOWN for v in tensors}


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that an operation changes in place."""
    written = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[place] if place < len(args) else kwargs.get(argument.name)
            written += [value for value in tree_leaves(given) if isinstance(value, Tensor)]
    return written
