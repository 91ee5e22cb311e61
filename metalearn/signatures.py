"""What a callable accepts, read off its signature, so that settings can be checked before a call.

A callable that hands its further keywords on says to whom: ``**rest: Annotated[Any, Other]`` means
that ``rest`` are settings of ``Other``.
"""

from __future__ import annotations

import collections.abc
import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from metalearn.errors import SettingError

__all__ = ["accepted_settings", "check_settings"]

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
        return _fits(value, int) or (isinstance(value, float) and not math.isnan(value))
    if hint in (str, Path):
        return isinstance(value, str)
    if origin in _LISTS:
        return isinstance(value, list | tuple) and _all_fit(value, origin, arguments)
    if inspect.isclass(hint) and hint is not Any and origin is None:
        return isinstance(value, hint)
    return True


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
    return words.get(hint, getattr(hint, "__name__", str(hint)))
