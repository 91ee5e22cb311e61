"""What values read from a file have to be: told as data, and checked before any of them is used.

A kind is a function of a value and of where it stands; it raises `Misfit` or accepts. Kinds look no
deeper than they are written, so that neither depth nor shared parts of a file can make them slow.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Kind",
    "Misfit",
    "anything",
    "choice",
    "entries",
    "flag",
    "like",
    "list_of",
    "map_of",
    "mapping",
    "maybe",
    "nothing",
    "number",
    "shown",
    "square",
    "tensor_like",
    "text",
    "together",
    "whole",
]

Kind = Callable[[Any, str], None]

_LONGEST = 40  # characters of a value that a message repeats


class Misfit(ValueError):
    """A value is not of its kind; the message says where, what it is and what is needed."""

    def __init__(self, where: str, value: object, needed: str) -> None:
        super().__init__(f"{where or 'it'} is {shown(value)}, but {needed} is needed")


def anything(value: Any, where: str) -> None:
    """Accept whatever there is."""


def nothing(value: Any, where: str) -> None:
    """Refuse whatever there is."""
    raise Misfit(where, value, "no such entry")


def whole(least: int = 0, most: int = 2**63 - 1) -> Kind:
    """A whole number in least..most."""
    top = "" if most == 2**63 - 1 else f" and at most {most}"

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise Misfit(where, value, f"a whole number of at least {least}{top}")

    return check


def number(least: float = -float("inf"), *, nan: bool = False) -> Kind:
    """A number of at least ``least``, not NaN unless that is said; whole ones count."""

    def check(value: Any, where: str) -> None:
        right = isinstance(value, int | float) and not isinstance(value, bool)
        vast = isinstance(value, int) and abs(value) > sys.float_info.max  # no float can be made
        if not right or vast or not (value >= least or (nan and value != value)):
            needed = "a number" if least == -float("inf") else f"a number of at least {least:g}"
            raise Misfit(where, value, needed)

    return check


def text(value: Any, where: str) -> None:
    """A text."""
    if not isinstance(value, str):
        raise Misfit(where, value, "a text")


def flag(value: Any, where: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise Misfit(where, value, "true or false")


def choice(*known: Any) -> Kind:
    """One of a few values."""

    def check(value: Any, where: str) -> None:
        if not any(type(value) is type(option) and value == option for option in known):
            raise Misfit(where, value, f"one of {', '.join(map(str, known))}")

    return check


def maybe(kind: Kind) -> Kind:
    """Nothing, or a kind."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            kind(value, where)

    return check


def list_of(kind: Kind, *, length: int | None = None, most: int | None = None) -> Kind:
    """A list of one kind, of a length or of at most so many."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list | tuple):
            raise Misfit(where, value, "a list")
        if length is not None and len(value) != length:
            raise Misfit(f"the length of {where}", len(value), str(length))
        if most is not None and len(value) > most:
            raise Misfit(f"the length of {where}", len(value), f"at most {most}")
        for index, entry in enumerate(value):
            kind(entry, f"{where}[{index}]")

    return check


def entries(*kinds: Kind) -> Kind:
    """A list with as many entries as there are kinds, each of its own."""

    def check(value: Any, where: str) -> None:
        list_of(anything, length=len(kinds))(value, where)
        for index, (entry, kind) in enumerate(zip(value, kinds)):
            kind(entry, f"{where}[{index}]")

    return check


def map_of(key: Kind, kind: Kind) -> Kind:
    """A mapping of one kind of keys to one kind of values."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise Misfit(where, value, "a mapping")
        for name, entry in value.items():
            key(name, f"a key of {where}")
            kind(entry, _joined(where, name))

    return check


def mapping(
    fields: Mapping[Any, Kind], optional: Mapping[Any, Kind] | None = None, others: Kind = anything
) -> Kind:
    """A mapping with some fields, perhaps some more, and others."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise Misfit(where, value, "a mapping")
        for name in fields:
            if name not in value:
                raise Misfit(_joined(where, name), _MISSING, "it")
        known = {**fields, **(optional or {})}
        for name, entry in value.items():
            known.get(name, others)(entry, _joined(where, name))

    return check


def together(fields: Mapping[Any, Kind]) -> Kind:
    """A mapping with all of some fields or with none of them."""

    def check(value: Any, where: str) -> None:
        mapping({})(value, where)
        if any(name in value for name in fields):
            mapping(fields)(value, where)

    return check


def tensor_like(wanted: Tensor) -> Kind:
    """A tensor of a shape and of a kind of numbers; floating-point precisions may differ."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Tensor) or not _plain(value):
            raise Misfit(where, value, "a tensor with its numbers")
        floating = wanted.is_floating_point() and value.is_floating_point()
        same = floating or value.dtype == wanted.dtype
        if value.shape != wanted.shape or not same:
            raise Misfit(where, value, f"{_shape(wanted)}")

    return check


def square(value: Any, where: str) -> None:
    """A square matrix of floating-point numbers."""
    side = len(value) if isinstance(value, Tensor) and value.ndim else 1
    tensor_like(torch.empty(side, side, device="meta"))(value, where)


def like(value: Any) -> Kind:
    """What is built as a value is: its keys, lengths, shapes and kinds of numbers."""
    if isinstance(value, Tensor):
        return tensor_like(value)
    if isinstance(value, Mapping):
        return mapping({name: like(entry) for name, entry in value.items()}, others=nothing)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return entries(*(like(entry) for entry in value))
    for known, kind in (
        (bool, flag),
        (int, whole(-(2**63))),
        (float, number(nan=True)),
        (str, text),
    ):
        if isinstance(value, known):
            return kind
    return anything


_MISSING = type("Missing", (), {})()


def _joined(where: str, name: Any) -> str:
    name = _cut(name if isinstance(name, str) else repr(name)) if _short(name) else "…"
    return f"{where}.{name}" if where else name


def _plain(value: Tensor) -> bool:
    """Whether a tensor has memory of its own, laid out as ours are."""
    return value.layout == torch.strided and not value.is_meta and not value.is_quantized


def _shape(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}"


def shown(value: object) -> str:
    """A value in a few words; nothing deep or long is ever spelt out."""
    if value is _MISSING:
        return "missing"
    if isinstance(value, Tensor):
        return _shape(value) if _plain(value) else f"a {value.layout} tensor on {value.device}"
    if isinstance(value, str):
        return _cut(repr(value[: 2 * _LONGEST]))
    if _short(value):
        return repr(value)
    return f"a {type(value).__name__}"


def _short(value: object) -> bool:
    """Whether a value is a scalar that can be spelt out."""
    if isinstance(value, int):
        return value.bit_length() < 128
    return value is None or isinstance(value, float | str)


def _cut(text: str) -> str:
    line = text if text.isprintable() else repr(text)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
