"""What a callable accepts, read off its signature, so that settings can be checked before a call.

A callable that hands its further keywords on says to whom: ``**rest: Annotated[Any, Other]`` means
that ``rest`` are settings of ``Other``, ``**rest: Unpack[Options]`` that they are keys of that
TypedDict, which editors and mypy read. A public function under `checked` refuses arguments of
another kind than its hints say in one sentence, before anything is computed.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
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
from typing_extensions import Unpack

from metalearn.errors import CallError
from metalearn.hints import LISTS, Test, fits, takes_arguments, test_of
from metalearn.misfits import misfit, unknown_setting

__all__ = [
    "accepted_settings",
    "check_fields",
    "check_settings",
    "checked",
    "fits",
    "known_fields",
    "takes_arguments",
]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_MANY = (tuple, collections.abc.Sequence, collections.abc.Mapping)
_hints_of = functools.lru_cache(256)(functools.partial(typing.get_type_hints, include_extras=True))
_POSITIONAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)


def accepted_settings(function: Callable[..., Any]) -> dict[str, Any]:
    """Names that ``function`` accepts as keywords, each with its type hint (Any without one).

    A class whose constructor hands on what it does not know, ``**rest``, accepts what the
    constructor above it accepts too.
    """
    hints = _hints(function)
    settings: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints.get(name, Any)
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            if get_origin(hint) is Annotated:
                settings |= accepted_settings(get_args(hint)[1])
            elif get_origin(hint) is Unpack:
                settings |= typing.get_type_hints(get_args(hint)[0])
            elif inspect.isclass(function):
                settings = _accepted_above(function) | settings
        elif parameter.kind not in _POSITIONAL:
            settings[name] = hint
    return settings


def _accepted_above(kind: type) -> dict[str, Any]:
    """What the constructor accepts that comes after a class's own in its order of resolution."""
    own = [base for base in kind.__mro__ if "__init__" in vars(base)]
    return accepted_settings(own[1]) if own[1:] and own[1] is not object else {}


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

    One with further keywords that it says nothing of, ``**rest``, accepts every name.

    Args:
        function: what will be called with the values.
        values: plain numbers, strings, lists and mappings.
        prefix: put before each name in messages, ``"trainer."``.
        without: names that are no settings, though ``function`` accepts them.

    Raises:
        SettingError: the first misfit.
    """
    accepted = {k: v for k, v in accepted_settings(function).items() if k not in without}
    further = _takes_any(function)
    for name, value in values.items():
        if name not in accepted:
            if further and name not in without:
                continue
            raise unknown_setting(name, value, accepted, prefix)
        if not fits(value, accepted[name]):
            raise misfit(prefix + name, value, accepted[name])


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, which refuses arguments that do not fit their hints.

    Hints that say nothing (trees, batches: ``Any``) accept all; numbers and words of a list are
    left to the function, which knows their range. The hints are read at the first call; after that
    a call costs two microseconds more.

    Raises:
        SettingError: names the argument, what it got and what would be accepted.
    """
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters
    names = [n for n, p in parameters.items() if p.kind in by_place]
    open_ended = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters.values())

    @functools.cache
    def tests() -> dict[str, tuple[Test, Any]]:
        found = typing.get_type_hints(function)
        every = ((name, test_of(hint), hint) for name, hint in found.items() if not _is_plain(hint))
        return {name: (test, hint) for name, test, hint in every if test is not None}

    @functools.cache
    def keywords() -> dict[str, Any] | None:
        return None if _takes_any(function) else accepted_settings(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        known = tests()
        if kwargs:
            _check_keywords(kwargs, keywords())
        if len(args) > len(names) and not open_ended:
            _refuse_places(function, args, names)
        for name, value in (*zip(names, args), *kwargs.items()):
            if name in known and not known[name][0](value):
                raise misfit(name, value, known[name][1])
        return function(*args, **kwargs)

    return call


def known_fields(record: type[T]) -> type[T]:
    """A dataclass that refuses fields it does not have in one sentence, with the nearest name.

    Raises:
        SettingError: names the field, or says how many arguments stand without their names.
    """
    kind: Any = record
    init = kind.__init__
    known = {field.name: field for field in dataclasses.fields(kind) if field.init}
    names = [name for name, field in known.items() if not field.kw_only]

    @functools.wraps(init)
    def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
        _check_keywords(kwargs, known)
        if len(args) > len(names):
            accepted = f"at most {len(names)} may stand without a name: {', '.join(names)}"
            raise CallError("arguments", f"{len(args)} without names", accepted)
        init(self, *args, **kwargs)

    kind.__init__ = checked_init
    return record


def _takes_any(function: Callable[..., Any]) -> bool:
    """Whether it has further keywords, and does not say whose settings they are."""
    rest = [p for p in inspect.signature(function).parameters.values() if p.kind is p.VAR_KEYWORD]
    hints = _hints(function)
    return any(get_origin(hints.get(p.name)) not in (Annotated, Unpack) for p in rest)


def _check_keywords(given: Mapping[str, Any], known: Mapping[str, Any] | None) -> None:
    for name in given:
        if known is not None and name not in known:
            raise unknown_setting(name, given[name], [k for k in known if k != "self"])


def _refuse_places(function: Callable[..., Any], args: Sequence[Any], names: list[str]) -> None:
    """Say how many arguments stand without their names, and which names there are."""
    own = names[:1] in (["self"], ["cls"])
    further = [name for name in accepted_settings(function) if name not in names]
    accepted = f"{', '.join(names[own:]) or 'none'} may stand without a name"
    if len(names[own:]) == 1 and get_origin(_hints(function).get(names[-1])) in LISTS:
        accepted = f"{names[-1]} are given as one list, [a, b]"
    elif further:
        accepted += f", the others are given by name, {further[0]}=…"
    raise CallError("arguments", f"{len(args) - own} without names", accepted)


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
            raise misfit(name, value, hint)


@functools.cache
def _field_tests(kind: Any) -> dict[str, tuple[Test, Any]]:
    """What the fields of a dataclass are held to, where they are, worked out once."""
    found = {}
    for name, hint in typing.get_type_hints(kind).items():
        ours = name.startswith("_") or get_origin(hint) is ClassVar
        test = None if ours or _is_plain(hint) else test_of(hint)
        if test is not None:
            found[name] = (test, hint)
    return found
