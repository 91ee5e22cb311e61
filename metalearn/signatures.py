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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from metalearn.errors import SettingError

__all__ = ["accepted_settings", "check_settings"]


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
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            settings[name] = hint
    return settings


def check_settings(function: Callable[..., Any], values: Mapping[str, Any], prefix: str) -> None:
    """Refuse names that ``function`` does not accept and values of a wrong type.

    Args:
        function: what will be called with the values.
        values: plain numbers, strings, lists and mappings.
        prefix: put before each name in messages, ``"trainer."``.

    Raises:
        SettingError: the first misfit.
    """
    accepted = accepted_settings(function)
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
    if origin is Literal:
        return value in arguments
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
        )
    if hint in (str, Path):
        return isinstance(value, str)
    if origin in (list, tuple, collections.abc.Sequence, collections.abc.Iterable):
        inner = [a for a in arguments if a is not Ellipsis]
        return isinstance(value, list | tuple) and (
            not inner or all(any(_fits(v, a) for a in inner) for v in value)
        )
    if inspect.isclass(hint) and origin is None:
        return isinstance(value, hint)
    return True


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
    if origin is not None:
        return "a list"
    return words.get(hint, getattr(hint, "__name__", str(hint)))
