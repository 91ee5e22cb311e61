"""What follows from data alone, made once while a gradient is taken.

A support set goes through the first layer at every inner step; its columns and their moments are
the same each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import Tensor

from metalearn.core._functorch import is_functorch_wrapped_tensor
from metalearn.core.ops.windows import Window

__all__ = ["cached", "caching_data"]

_MOST = 4  # a support and a query set, for a first layer with two windows

_Made = TypeVar("_Made")
_memory: ContextVar[dict[Any, tuple[Tensor, Any]] | None] = ContextVar(
    "what was made of data", default=None
)


@contextmanager
def caching_data() -> Iterator[None]:
    """Meanwhile `cached` answers from memory, the few last things that it made."""
    token = _memory.set({})
    try:
        yield
    finally:
        _memory.reset(token)


def cached(make: Callable[[Tensor, Window], _Made], x: Tensor, window: Window) -> _Made:
    """``make(x, window)`` of an x that needs no gradient; what is returned is not to be changed."""
    memory = _memory.get()
    if memory is None or x.is_inference() or is_functorch_wrapped_tensor(x):
        return make(x, window)
    place = x.untyped_storage()._cdata, x.storage_offset(), tuple(x.shape), x.stride(), x.dtype
    key = make, window, place, x._version
    if key not in memory:
        if len(memory) == _MOST:
            del memory[next(iter(memory))]
        memory[key] = x, make(x, window)  # with x, so that its memory is not given to another
    made: _Made = memory[key][1]
    return made
