"""Whether a value fits a type hint, as far as the hint says anything about values."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import numbers
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from metalearn.types import offers

__all__ = ["LISTS", "Test", "fits", "takes_arguments", "test_of"]

LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is acceptable for a hint; hints beyond these accept all."""
    test = test_of(hint)
    return test is None or test(value)


Test = Callable[[Any], bool]


@functools.cache
def test_of(hint: Any) -> Test | None:
    """What tells whether a value fits a hint, worked out once; None where all do."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        options = [test_of(option) for option in arguments]
        known = [option for option in options if option is not None]
        return (lambda v: any(t(v) for t in known)) if len(known) == len(options) else None
    if origin is Literal:  # 1, 1.0 and True are equal, but not the same setting
        return lambda v: any(v is o or (type(v) is type(o) and v == o) for o in arguments)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin is collections.abc.Callable:
        count = len(arguments[0]) if isinstance(arguments[0], list) else None
        return lambda v: callable(v) and (count is None or takes_arguments(v, count))
    if origin in (dict, collections.abc.Mapping):
        return lambda v: isinstance(v, dict | collections.abc.Mapping)
    if origin in LISTS:
        return functools.partial(_fits_list, origin, arguments)
    if getattr(hint, "_is_protocol", False):
        checked_at_runtime = getattr(hint, "_is_runtime_protocol", False)
        return functools.partial(offers, protocol=hint) if checked_at_runtime else None
    if inspect.isclass(hint) and hint is not Any and origin is None:
        return lambda v: isinstance(v, hint)
    return None


_PLAIN: dict[Any, Test] = {
    None: lambda v: v is None,
    type(None): lambda v: v is None,
    int: lambda v: isinstance(v, int) and not isinstance(v, bool),
    float: lambda v: (
        type(v) is int
        or (isinstance(v, numbers.Real) and not isinstance(v, bool) and not math.isnan(v))
    ),
    Path: lambda v: isinstance(v, str | Path),
    str: lambda v: isinstance(v, str),
}


def _fits_list(origin: Any, arguments: tuple[Any, ...], value: Any) -> bool:
    if arguments[0] is int and hasattr(value, "dtype"):  # an array or tensor of indices
        return value.ndim == 1 and str(value.dtype).removeprefix("torch.") in _INTEGERS
    if _is_list(value):
        return _all_fit(value, origin, arguments)
    return origin is collections.abc.Iterable and _is_iterable(value)


_INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


def _is_list(value: Any) -> bool:
    """Lists, tuples, ranges, module lists, arrays: what has a length and an order."""
    if isinstance(value, list | tuple):
        return True
    sized = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    if not sized or isinstance(value, str | bytes | collections.abc.Mapping):
        return False
    return getattr(value, "ndim", 1) > 0  # a tensor without axes has no length


def _is_iterable(value: Any) -> bool:
    """What gives one value after another, such as a generator or a loader of data."""
    return hasattr(value, "__iter__") and not isinstance(
        value, str | bytes | collections.abc.Mapping
    )


def takes_arguments(function: Callable[..., Any], count: int) -> bool:
    """Whether a plain function takes so many arguments by place; others are not asked."""
    if not isinstance(function, types.FunctionType):
        return True
    code = function.__code__
    most = code.co_argcount
    least = most - len(function.__defaults__ or ())
    named = set(code.co_varnames[most : most + code.co_kwonlyargcount])
    if named - set(function.__kwdefaults__ or ()):
        return False
    return least <= count and (count <= most or bool(code.co_flags & inspect.CO_VARARGS))


def _all_fit(values: Sequence[Any], origin: Any, arguments: tuple[Any, ...]) -> bool:
    """Entries of a list: of one kind, or each of its own for a tuple of fixed length."""
    if origin is tuple and Ellipsis not in arguments:
        return len(values) == len(arguments) and all(map(fits, values, arguments))
    test = test_of(arguments[0])
    if isinstance(values, range) and arguments[0] in (int, float):  # all fit, or none does
        values = values[:1]
    return test is None or all(map(test, values))
