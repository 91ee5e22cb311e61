"""Calls of a step that depend on tensors and on settings alone, so that they may be compiled.

Axes: none.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, Protocol

import torch
from torch import nn

__all__ = [
    "Compilable",
    "PureCalls",
    "as_it_is",
    "digest_of",
    "held",
    "keyed",
    "plain_attributes",
    "same_call",
]

PureCalls = Callable[..., Any]
"""``calls(function, *trees)`` gives what ``function(*trees)`` gives.

The function, such as a `functools.partial`, holds what is no tensor; what it gives follows from
that, from the trees and from tensors that it holds, such as buffers."""

_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)


class Compilable(Protocol):
    """An objective whose gradient makes its pure calls by a function that a loop may replace."""

    pure: PureCalls


def as_it_is(function: Callable[..., Any], *trees: Any) -> Any:
    """Call a function."""
    return function(*trees)


def keyed(function: Callable[..., Any], *keys: Any) -> partial[Any]:
    """The function, as another where keys are others: what it depends on beside its settings."""
    return partial(_without_keys, function, keys)


def plain_attributes(thing: object) -> dict[str, Any]:
    """The numbers and names among the attributes of an object."""
    return {name: value for name, value in vars(thing).items() if isinstance(value, _PLAIN)}


def _without_keys(function: Callable[..., Any], keys: Any, *trees: Any) -> Any:
    return function(*trees)


def same_call(one: Any, other: Any) -> bool:
    """Whether two functions compute the same of the same trees, as far as that can be seen.

    Partials and methods of the same, with the same settings: numbers and names by their values, in
    lists, mappings and frozen data classes too; anything else has to be the same object.
    """
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, _PLAIN):
        return bool(one == other)
    own, others = _parts(one), _parts(other)
    if own is None or others is None or len(own) != len(others):
        return False
    return all(map(same_call, own, others))


def held(value: Any) -> Any:
    """A function, or a setting of it, with lists and mappings copied, lest they change later."""
    if isinstance(value, partial):
        keywords = {name: held(own) for name, own in value.keywords.items()}
        return partial(held(value.func), *map(held, value.args), **keywords)
    if isinstance(value, dict):
        return {name: held(own) for name, own in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(held, value))
    return value


def digest_of(function: Callable[..., Any], shapes: Any) -> str:
    """A name for like calls of functions, in another process too: objects are told by their types.

    Args:
        function: of the call.
        shapes: of its trees, plain.
    """
    return hashlib.sha256(f"{_told(function)} {shapes}".encode()).hexdigest()[:32]


def _told(value: Any) -> str:
    """A value of a kind that is known, in words; of others their type."""
    if isinstance(value, _PLAIN):
        return repr(value)
    parts = _parts(value)
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return name if parts is None else f"{name}({', '.join(map(_told, parts))})"


def _parts(value: Any) -> list[Any] | None:
    """What makes up a value of a kind that is known; None of others."""
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, tuple | list):
        return list(value)
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    fixed = dataclasses.is_dataclass(value) and not isinstance(value, type | nn.Module)
    if fixed and value.__dataclass_params__.frozen:
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return None
