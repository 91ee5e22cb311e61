"""Whether what modules hold beside their tensors is the same, in two networks or at two times."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence, Set
from functools import partial
from types import FunctionType, MethodType
from typing import Any
from weakref import ReferenceType

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from metalearn.core.module.copied_parts import object_state

__all__ = ["attributes", "comparable"]

Attributes = dict[tuple[str, str], Any]
"""By the layer's name and the attribute's."""


def attributes(module: nn.Module) -> Attributes:
    """What each layer holds beside the values of parameters and buffers, comparable.

    Modes, hooks, settings, names of parameters, buffers and layers, which of them are the same, and
    every attribute, private ones too. The weight that torch's old ``weight_norm`` and
    ``spectral_norm`` compute anew in each pass is left out.
    """
    known = _Numbers()
    for value in (*module.modules(), *module.parameters(), *module.buffers()):
        if id(value) not in known:
            known.give(value)
    found: Attributes = {}
    for name, layer in module.named_modules():
        found[name, "class"] = _kind(layer)
        computed = _computed(layer)
        for attribute, value in vars(layer).items():
            if attribute in computed or attribute == "_compiled_call_impl":
                continue
            if attribute in ("_parameters", "_buffers", "_modules"):
                found[name, attribute] = tuple(
                    (key, None if item is None else known.get(id(item), -1))
                    for key, item in value.items()
                )
            elif attribute.startswith("_") and "_hooks_" in attribute:
                numbers = getattr(layer, attribute.partition("_hooks_")[0] + "_hooks", {})
                found[name, attribute] = tuple(bool(value.get(number)) for number in numbers)
            elif attribute.startswith("_") and attribute.endswith("_hooks"):
                found[name, attribute] = comparable(tuple(value.values()), known.copy())
            else:
                found[name, attribute] = comparable(value, known.copy())
    return found


class _Numbers(dict[int, int]):
    """Objects by identity, numbered and kept alive: a passing one lends its identity to none."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[Any] = []

    def give(self, value: Any) -> None:
        """Number the next object."""
        self[id(value)] = len(self)
        self._kept.append(value)

    def copy(self) -> _Numbers:
        """The same numbers, which go on apart."""
        found = _Numbers()
        found.update(self)
        found._kept = [self._kept]
        return found


def comparable(value: Any, known: _Numbers | None = None) -> Any:
    """Something comparable: equal for attributes with which networks compute the same.

    Objects are compared by what they hold, functions by their code and what they enclose (a lambda
    made anew for each network is the same one), tensors by their elements, generators by their
    state; what does not show what it holds, by identity.

    Args:
        value: of an attribute.
        known: numbers of the objects met so far, by identity, so that two references to one object
            are told from references to two. Tuples are not numbered, as they may be passing ones.
    """
    if value is None or isinstance(value, int | float | complex | str | bytes | type):
        return type(value), repr(value) if isinstance(value, float | complex) else value
    known = _Numbers() if known is None else known
    if id(value) in known:
        return "met before", known[id(value)]
    if isinstance(value, tuple):
        return type(value), tuple(comparable(v, known) for v in value)
    known.give(value)
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, Set):
        return type(value), frozenset(comparable(v, known.copy()) for v in value)
    if isinstance(value, Mapping):
        return type(value), tuple(
            (comparable(k, known), comparable(v, known)) for k, v in value.items()
        )
    if isinstance(value, Sequence | deque):
        return type(value), tuple(comparable(v, known) for v in value)
    return type(value), _parts(value, known)


def _tensor(value: Tensor) -> Any:
    shape = value.dtype, tuple(value.shape), value.device, value.requires_grad and value.is_leaf
    if value.is_meta or value.layout != torch.strided:
        return (*shape, id(value) if not value.is_meta else None)
    kept = value.detach().cpu().contiguous()
    return (*shape, kept.flatten().view(torch.uint8).numpy().tobytes())


def _parts(value: Any, known: _Numbers) -> Any:
    """What an object, function or method is made of."""
    if isinstance(value, FunctionType):
        cells = tuple(_content(cell) for cell in value.__closure__ or ())
        return value.__code__, comparable((cells, value.__defaults__, value.__kwdefaults__), known)
    if isinstance(value, MethodType):
        return comparable((value.__func__, value.__self__), known)
    if isinstance(value, partial):
        return comparable((value.func, value.args, value.keywords), known)
    if isinstance(value, torch.Generator):
        return value.device, _tensor(value.get_state())
    if isinstance(value, ReferenceType):
        return comparable(value(), known)
    if type(value).__name__ in ("lock", "RLock") and type(value).__module__ == "_thread":
        return None  # each network has its own
    if hasattr(value, "dtype") and hasattr(value, "tobytes"):  # an array
        return str(value.dtype), getattr(value, "shape", None), value.tobytes()
    if hasattr(value, "__dict__") and not callable(getattr(value, "__next__", None)):
        return comparable(object_state(value), known), _slots(value, known)
    if getattr(type(value), "__slots__", None):
        return _slots(value, known)
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


def _slots(value: Any, known: _Numbers) -> Any:
    names = [n for base in type(value).__mro__ for n in _names(vars(base).get("__slots__", ()))]
    return tuple((n, comparable(getattr(value, n), known)) for n in names if hasattr(value, n))


def _names(slots: Any) -> list[str]:
    names = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"


def _kind(layer: nn.Module) -> Any:
    """The class; of a parametrised layer, for each of which torch makes one, that before."""
    if parametrize.is_parametrized(layer):
        return parametrize.type_before_parametrizations(layer), "parametrised"
    return type(layer)


def _computed(layer: nn.Module) -> set[str]:
    """Attributes that old-style hooks compute before each pass."""
    hooks = layer._forward_pre_hooks.values()
    return {hook.name for hook in hooks if isinstance(hook, WeightNorm | SpectralNorm)}
