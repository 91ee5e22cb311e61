"""Copies of modules whose structure is their own: layers, hooks, attributes, what these hold.

`copy.deepcopy` refuses modules that hold a computed tensor (old weight norm), a lock or an open
file, and leaves functions that enclose a layer with the original's. Here computed tensors are
copied without their graph, what cannot be copied is shared, and functions enclose the copies.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from types import CellType, FunctionType, MethodType, SimpleNamespace
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from metalearn.core.module.copied_parts import (
    ClosureCell,
    UncompiledModule,
    copies_itself,
    detached_copy,
    holds_value,
    is_compiled,
    object_state,
)
from metalearn.errors import SettingError

__all__ = ["Copier", "TensorSlot", "copy_module", "named_tensors"]


def copy_module(module: nn.Module, replaced: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy of a module that shares no tensor with it, computed ones without their graph.

    Args:
        module: left as it is.
        replaced: tensors by the names of parameters and buffers, which the copy gets in their
            place, wherever these stand; tied ones by their first name.
    """
    given = replaced or {}
    by_id = {id(t): given[n] for n, t in named_tensors(module).items() if n in given}

    def tensor(value: Tensor) -> Tensor:
        return by_id[id(value)] if id(value) in by_id else detached_copy(value)

    copied: nn.Module = Copier(tensor)(module)
    return copied


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once."""
    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if id(value) not in seen:
            seen.add(id(value))
            named[name] = value
    return named


class TensorSlot:
    """Stands in a copy where a tensor by this name is to be put."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Copier:
    """Copies what a module is made of, each object once.

    Args:
        tensor: what stands for a tensor; a `TensorSlot` is noted in ``places``.
        deep: whether what functions enclose is copied as well; else functions that reach no layer
            and no place are shared.

    Attributes:
        places: where places stand: container, key, place.
        containers: what holds other objects, of layers the tables alone: original, copy.
    """

    def __init__(self, tensor: Callable[[Tensor], Any], *, deep: bool = False) -> None:
        self._tensor, self._deep = tensor, deep
        self._done: dict[int, Any] = {}
        self._originals: list[Any] = []  # kept, that no other object gets their identity
        self.places: list[tuple[Any, Any, TensorSlot]] = []
        self.containers: list[tuple[Any, Any]] = []

    def __call__(self, value: Any) -> Any:
        """The copy of any object, or the object itself where it cannot be copied."""
        if value is None or type(value) in _ATOMS:
            return value
        if id(value) in self._done:
            return self._done[id(value)]
        for kind, copier in _COPIERS:
            if isinstance(value, kind):
                return copier(self, value)
        return self._object(value)

    def _keep(self, value: Any, new: Any) -> Any:
        self._done[id(value)] = new
        self._originals.append(value)
        return new

    def _hold(self, value: Any, new: Any) -> Any:
        self.containers.append((value, new))
        return self._keep(value, new)

    def _fill(self, container: Any, items: Any) -> None:
        for key, value in items:
            new = self(value)
            container[key] = new
            if type(new) is TensorSlot:
                self.places.append((container, key, new))

    def _of_tensor(self, value: Tensor) -> Any:
        return self._keep(value, self._tensor(value))

    def _module(self, value: nn.Module) -> Any:
        if isinstance(value, torch.jit.ScriptModule):
            return value
        if is_compiled(value):
            new: nn.Module = UncompiledModule.__new__(UncompiledModule)
        else:
            new = object.__new__(type(value))
        self._keep(value, new)
        items = dict(vars(value))
        items.pop("_compiled_call_impl", None)
        if type(new) is UncompiledModule:
            kept = vars(nn.Module())
            items = {name: item for name, item in items.items() if name in kept}
        self._fill(vars(new), items.items())
        return new

    def _dict(self, value: dict[Any, Any]) -> Any:
        new = self._hold(value, copy.copy(value))
        items = list(value.items())
        if any(isinstance(key, nn.Module) for key, _ in items):
            new.clear()
            items = [(self(key), item) for key, item in items]
        self._fill(new, items)
        return new

    def _list(self, value: list[Any] | deque[Any]) -> Any:
        new = self._hold(value, copy.copy(value))
        self._fill(new, list(enumerate(value)))
        return new

    def _set(self, value: set[Any]) -> Any:
        new = self._hold(value, copy.copy(value))
        new.clear()
        new.update(map(self, value))
        return new

    def _tuple(self, value: tuple[Any, ...]) -> Any:
        items = [self(item) for item in value]
        if any(type(item) is TensorSlot for item in items):
            names = [item.name for item in items if type(item) is TensorSlot]
            raise SettingError(
                "module", names, "parameters and buffers inside a tuple cannot be replaced; "
                "a list is needed",
            )  # fmt: skip
        if all(new is old for new, old in zip(items, value)):
            return value
        make = getattr(type(value), "_make", type(value))
        return self._keep(value, make(items))

    def _generator(self, value: torch.Generator) -> torch.Generator:
        new = torch.Generator(value.device)
        new.set_state(value.get_state())
        return self._keep(value, new)  # type: ignore[no-any-return]

    def _function(self, value: FunctionType) -> Any:
        if not value.__closure__ or not (self._deep or self._reaches(value, set())):
            return value
        cells = tuple(CellType() for _ in value.__closure__)
        new = FunctionType(
            value.__code__, value.__globals__, value.__name__, value.__defaults__, cells
        )
        new.__kwdefaults__ = value.__kwdefaults__
        new.__qualname__, new.__dict__ = value.__qualname__, dict(vars(value))
        self._keep(value, new)
        for cell, old in zip(cells, value.__closure__):
            try:
                held = old.cell_contents
            except ValueError:
                continue
            wanted = self._deep or self._reaches(held, set())
            if wanted:
                self._fill(ClosureCell(cell), [(None, held)])
            else:
                cell.cell_contents = held
        return new

    def _method(self, value: MethodType) -> Any:
        return self._keep(value, MethodType(self(value.__func__), self(value.__self__)))

    def _partial(self, value: partial[Any]) -> Any:
        args, words = self(value.args), {n: self(v) for n, v in value.keywords.items()}
        return self._keep(value, partial(self(value.func), *args, **words))

    def _reference(self, value: ReferenceType[Any]) -> Any:
        """A weak reference to the copy of a layer, as that of a layer to the one around it."""
        layer = value()
        return ref(self(layer)) if isinstance(layer, nn.Module) else value

    def _reaches(self, value: Any, seen: set[int]) -> bool:
        """Whether a layer, or a tensor with a place, is enclosed."""
        if id(value) in seen:
            return False
        seen.add(id(value))
        if isinstance(value, nn.Module):
            return True
        if isinstance(value, Tensor):
            return type(self(value)) is TensorSlot
        held: list[Any] = []
        if isinstance(value, FunctionType):
            held = [cell.cell_contents for cell in value.__closure__ or () if holds_value(cell)]
        elif isinstance(value, MethodType):
            held = [value.__func__, value.__self__]
        elif isinstance(value, partial):
            held = [value.func, *value.args, *value.keywords.values()]
        elif type(value) in (list, tuple):
            held = list(value)
        elif type(value) is dict:
            held = list(value.values())
        return any(self._reaches(item, seen) for item in held)

    def _object(self, value: Any) -> Any:
        """Any other object: copied where it is no more than its attributes, else shared."""
        kind = type(value)
        bare = isinstance(value, SimpleNamespace)  # of C, but no more than its attributes
        own = copies_itself(kind) and not bare
        if own or isinstance(value, type) or not hasattr(value, "__dict__"):
            return value
        try:
            new = SimpleNamespace.__new__(kind) if bare else object.__new__(kind)
        except TypeError:
            return value
        self._keep(value, new)
        for base in kind.__mro__:
            slots = vars(base).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                    object.__setattr__(new, name, self(getattr(value, name)))
        self._fill(vars(new), list(object_state(value).items()))
        self.containers.append((vars(value), vars(new)))
        return new


_ATOMS = frozenset({bool, int, float, complex, str, bytes, type, torch.dtype, torch.device})
_COPIERS: tuple[tuple[Any, Callable[[Copier, Any], Any]], ...] = (
    (Tensor, Copier._of_tensor),
    (TensorSlot, lambda copier, place: place),
    (nn.Module, Copier._module),
    (dict, Copier._dict),
    (list, Copier._list),
    (tuple, Copier._tuple),
    (FunctionType, Copier._function),
    (MethodType, Copier._method),
    (partial, Copier._partial),
    (set, Copier._set),
    (deque, Copier._list),
    (ReferenceType, Copier._reference),
    (torch.Generator, Copier._generator),
)
