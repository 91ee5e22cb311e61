"""Whether attributes of two networks mean the same, so that the networks may be stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

__all__ = ["plain"]


def plain(value: Any, inside: frozenset[int] = frozenset()) -> Any:
    """Something comparable: equal for attributes with which networks compute the same.

    Objects are compared by what they hold, functions by their code and what they enclose (a lambda
    made anew for each network is the same one), tensors by their elements.

    Args:
        value: of an attribute.
        inside: identities of the objects that hold it, which may refer to each other.
    """
    if value is None or isinstance(value, int | float | complex | str | bytes | type):
        return type(value), value
    if id(value) in inside:
        return "one that holds this"
    inside = inside | {id(value)}
    if isinstance(value, Tensor):
        kept = value.detach().cpu().contiguous()
        return kept.dtype, tuple(kept.shape), kept.flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, Set):
        return type(value), frozenset(plain(v, inside) for v in value)
    if isinstance(value, Mapping):
        return type(value), tuple((plain(k, inside), plain(v, inside)) for k, v in value.items())
    if isinstance(value, Sequence):
        return type(value), tuple(plain(v, inside) for v in value)
    return type(value), _parts(value, inside)


def _parts(value: Any, inside: frozenset[int]) -> Any:
    """What an object, function or method is made of."""
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return value.__code__, plain([cells, value.__defaults__, value.__kwdefaults__], inside)
    if isinstance(value, MethodType):
        return plain([value.__func__, value.__self__], inside)
    if isinstance(value, partial):
        return plain([value.func, value.args, value.keywords], inside)
    if hasattr(value, "__dict__"):
        return plain(vars(value), inside)
    try:
        return value if hash(value) is not None else None
    except TypeError:
        return repr(value)
