"""What a callable accepts, read off its signature, so that settings can be checked before a call.

A callable that hands its further keywords on says to whom: ``**rest: Annotated[Any, Other]`` means
that ``rest`` are settings of ``Other``. A public function under `checked` refuses arguments of
another kind than its hints say in one sentence, before anything is computed.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from torch import Tensor

from metalearn.errors import SettingError
from metalearn.near_names import nearest
from metalearn.types import offers

__all__ = ["accepted_settings", "check_fields", "check_settings", "checked", "takes_arguments"]

P = ParamSpec("P")
R = TypeVar("R")

_LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
_MANY = (tuple, collections.abc.Sequence, collections.abc.Mapping)
_hints_of = functools.lru_cache(256)(functools.partial(typing.get_type_hints, include_extras=True))
_POSITIONAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)


def accepted_settings(function: Callable[..., Any]) -> dict[str, Any]:
    """Names that ``function`` accepts as keywords, each with its type hint (Any without one)."""
    hints = _hints(function)
    settings: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints.get(name, Any)
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            if get_origin(hint) is Annotated:
                settings |= accepted_settings(get_args(hint)[1])
        elif parameter.kind not in _POSITIONAL:
            settings[name] = hint
    return settings


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Type hints of what is called; none where they name what only a type checker imports."""
    target: Any = function
    if inspect.isclass(function):
        target = function.__init__
    elif isinstance(function, functools.partial):
        return _hints(function.func)
    elif not inspect.isroutine(function):
        target = type(function).__call__
    try:
        return _hints_of(target)
    except NameError:
        return {}


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
            near = nearest(name, accepted)
            hint = f"did you mean {prefix}{near}?" if near else f"known: {', '.join(accepted)}"
            raise SettingError(prefix + name, value, f"there is no such setting; {hint}")
        if not _fits(value, accepted[name]):
            raise SettingError(prefix + name, value, f"{_describe(accepted[name])} is needed")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, which refuses arguments that do not fit their hints.

    Hints that say nothing (trees, batches: ``Any``) accept all; numbers and words of a list are
    left to the function, which knows their range. The hints are read at the first call; after that
    a call costs two microseconds more.

    Raises:
        SettingError: names the argument, what it got and what would be accepted.
    """
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [n for n, p in inspect.signature(function).parameters.items() if p.kind in by_place]

    @functools.cache
    def tests() -> dict[str, tuple[Test, Any]]:
        found = typing.get_type_hints(function)
        every = ((name, _test(hint), hint) for name, hint in found.items() if not _is_plain(hint))
        return {name: (test, hint) for name, test, hint in every if test is not None}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        known = tests()
        for name, value in (*zip(names, args), *kwargs.items()):
            if name in known and not known[name][0](value):
                raise SettingError(name, value, f"{_describe(known[name][1])} is needed")
        return function(*args, **kwargs)

    return call


def _is_plain(hint: Any) -> bool:
    """Whether it is of numbers and words alone, whose range the function knows better."""
    if get_origin(hint) in (Union, types.UnionType):
        options = get_args(hint)
        if int in options or float in options:  # numbers may come as tensors or one for each
            return all(_is_plain(o) or o is Tensor or get_origin(o) in _MANY for o in options)
        if any(get_origin(option) is Literal for option in options):
            return True  # words, or a value that says the same in its own terms
        return all(map(_is_plain, options))
    return hint in (int, float, type(None)) or get_origin(hint) is Literal


def check_fields(record: Any) -> None:
    """Refuse fields of a dataclass that do not fit their hints; for its ``__post_init__``.

    Raises:
        SettingError: names the field, what it got and what would be accepted.
    """
    kind: Any = type(record)
    for name, (test, hint) in _field_tests(kind).items():
        value = getattr(record, name)
        if not test(value):
            raise SettingError(name, value, f"{_describe(hint)} is needed")


@functools.cache
def _field_tests(kind: Any) -> dict[str, tuple[Test, Any]]:
    """What the fields of a dataclass are held to, where they are, worked out once."""
    found = {}
    for name, hint in typing.get_type_hints(kind).items():
        ours = name.startswith("_") or get_origin(hint) is ClassVar
        test = None if ours or _is_plain(hint) else _test(hint)
        if test is not None:
            found[name] = (test, hint)
    return found


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is acceptable for a hint; hints beyond these accept all."""
    test = _test(hint)
    return test is None or test(value)


Test = Callable[[Any], bool]


@functools.cache
def _test(hint: Any) -> Test | None:
    """What tells whether a value fits a hint, worked out once; None where all do."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        options = [_test(option) for option in arguments]
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
    if origin in _LISTS:
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
        return len(values) == len(arguments) and all(map(_fits, values, arguments))
    test = _test(arguments[0])
    return test is None or all(map(test, values))


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
        if arguments[0] is Any:
            return "a list"
        return f"a list of {_describe(arguments[0]).removeprefix('a ')}s"
    if origin is collections.abc.Callable:
        count = len(arguments[0]) if isinstance(arguments[0], list) else 0
        return f"a function of {count} argument{'s' * (count > 1)}" if count else "a function"
    if origin in (dict, collections.abc.Mapping):
        return "a mapping"
    if hint in words:
        return words[hint]
    name = getattr(hint, "__name__", str(hint))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
