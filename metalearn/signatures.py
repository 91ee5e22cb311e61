"""What a callable accepts, read off its signature, so that settings can be checked before a call.

A callable that hands its further keywords on says to whom: ``**rest: Annotated[Any, Other]`` means
that ``rest`` are settings of ``Other``. A public function under `checked` refuses arguments of
another kind than its hints say in one sentence, before anything is computed.
"""

from __future__ import annotations

import collections.abc
import difflib
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from metalearn.errors import SettingError

__all__ = ["accepted_settings", "check_settings", "checked"]

P = ParamSpec("P")
R = TypeVar("R")

_LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
_POSITIONAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)


def accepted_settings(function: Callable[..., Any]) -> dict[str, Any]:
    """Names that ``function`` accepts as keywords, each with its type hint (Any without one)."""
    target = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(target, include_extras=True)
    settings: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints.get(name, Any)
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            if get_origin(hint) is Annotated:
                settings |= accepted_settings(get_args(hint)[1])
        elif parameter.kind not in _POSITIONAL:
            settings[name] = hint
    return settings


def check_settings(
    function: Callable[..., Any],
    values: Mapping[str, Any],
    prefix: str,
    *,
    without: Collection[str] = (),
) -> None:
    """Refuse names that ``function`` does not accept and values of a wrong type.

    Args:
        function: what will be called with the values.
        values: plain numbers, strings, lists and mappings.
        prefix: put before each name in messages, ``"trainer."``.
        without: names that are no settings, though ``function`` accepts them.

    Raises:
        SettingError: the first misfit.
    """
    accepted = {k: v for k, v in accepted_settings(function).items() if k not in without}
    for name, value in values.items():
        if name not in accepted:
            near = difflib.get_close_matches(name, accepted, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(accepted)}"
            raise SettingError(prefix + name, value, f"there is no such setting; {hint}")
        if not _fits(value, accepted[name]):
            raise SettingError(prefix + name, value, f"{_describe(accepted[name])} is needed")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, which refuses arguments that do not fit their hints.

    Hints that say nothing (trees, batches: ``Any``) accept all. The hints are read at the first
    call; after that a call costs a few microseconds more.

    Raises:
        SettingError: names the argument, what it got and what would be accepted.
    """
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind
        in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ]

    @functools.cache
    def hints() -> dict[str, Any]:
        found = typing.get_type_hints(function)
        return {name: hint for name, hint in found.items() if hint is not Any}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        known = hints()
        for name, value in (*zip(names, args), *kwargs.items()):
            if name in known and not _fits(value, known[name]):
                raise SettingError(name, value, f"{_describe(known[name])} is needed")
        return function(*args, **kwargs)

    return call


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is acceptable for a hint; hints beyond these accept all."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is Literal:  # 1, 1.0 and True are equal, but not the same setting
        return any(value == option and type(value) is type(option) for option in arguments)
    if hint is None or hint is type(None):
        return value is None
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return real and not math.isnan(value)
    if hint is Path:
        return isinstance(value, str | Path)
    if hint is str:
        return isinstance(value, str)
    if origin is collections.abc.Callable:
        return callable(value)
    if origin is collections.abc.Mapping:
        return isinstance(value, collections.abc.Mapping)
    if origin in _LISTS:
        return _is_list(value) and _all_fit(value, origin, arguments)
    if getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False):
        return True
    if inspect.isclass(hint) and hint is not Any and origin is None:
        return isinstance(value, hint)
    return True


def _is_list(value: Any) -> bool:
    """Lists, tuples, ranges, module lists, arrays: what has a length and an order."""
    sized = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return sized and not isinstance(value, str | bytes | collections.abc.Mapping)


def _all_fit(values: Sequence[Any], origin: Any, arguments: tuple[Any, ...]) -> bool:
    """Entries of a list: of one kind, or each of its own for a tuple of fixed length."""
    if origin is tuple and Ellipsis not in arguments:
        return len(values) == len(arguments) and all(map(_fits, values, arguments))
    return all(_fits(value, arguments[0]) for value in values)


def _describe(hint: Any) -> str:
    """A hint in words: ``one of a, b``, ``a whole number or null``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_describe(option) for option in arguments))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    words = {
        None: "null",
        type(None): "null",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        Path: "a path",
    }
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)} values ({', '.join(map(_describe, arguments))})"
    if origin in _LISTS:
        return f"a list of {_describe(arguments[0]).removeprefix('a ')}s"
    if origin is collections.abc.Callable:
        return "a function"
    if origin is collections.abc.Mapping:
        return "a mapping"
    if hint in words:
        return words[hint]
    name = getattr(hint, "__name__", str(hint))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
