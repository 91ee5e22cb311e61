"""What copies of modules are made of: objects by their state, cells of functions, plain modules."""

from __future__ import annotations

import copy
from types import CellType
from typing import Any

from torch import Tensor, nn

__all__ = [
    "ClosureCell",
    "UncompiledModule",
    "copies_itself",
    "detached_copy",
    "holds_value",
    "is_compiled",
    "object_state",
]


def object_state(value: Any) -> dict[str, Any]:
    """The attributes that a copy of an object begins with: without what it would make anew."""
    kind = type(value)
    if getattr(kind, "__getstate__", None) is getattr(object, "__getstate__", None):
        found: dict[str, Any] = vars(value)
        return found
    state: Any = value.__getstate__()
    found = state if isinstance(state, dict) else vars(value)
    return found


class UncompiledModule(nn.Module):
    """Stands for a module of ``torch.compile``, whose compiled code would run the original."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module inside gives."""
        return self._modules["_orig_mod"](*args, **kwargs)  # type: ignore[misc]


class ClosureCell:
    """What a function encloses, as a container of one."""

    def __init__(self, cell: CellType) -> None:
        self._cell = cell

    def __setitem__(self, _: Any, value: Any) -> None:
        self._cell.cell_contents = value


def holds_value(cell: CellType) -> bool:
    """Whether a function's cell holds something yet."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def detached_copy(value: Tensor) -> Tensor:
    """A tensor of its own; without a graph, which a copy could not have."""
    if not value.is_leaf:
        return value.detach().clone()
    copied: Tensor = copy.deepcopy(value)
    return copied


def copies_itself(kind: type) -> bool:
    """Whether a class has its own way to be copied, which need not leave the original alone."""
    ways = ("__reduce_ex__", "__reduce__")
    return any(hasattr(kind, name) for name in _OWN_WAYS) or any(
        getattr(kind, name) is not getattr(object, name) for name in ways
    )


def is_compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile`` made it."""
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules


_OWN_WAYS = ("__deepcopy__", "__copy__", "__setstate__", "__getnewargs__", "__getnewargs_ex__")
