"""What a stop of the tour is: code, and what it computed in two ways or more."""

from __future__ import annotations

import ast
import functools
import inspect
import statistics
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from metalearn.core.tree import leaves, tree_map
from metalearn.errors import DisagreementError

__all__ = ["Chapter", "ScalarEngine", "Stop", "Way", "Ways", "check", "stop"]

_REPEATS = 7
_BUDGET = 0.1  # seconds of repeats of one way


class ScalarEngine(Protocol):
    """A reverse-mode engine over numbers, such as a module with these functions."""

    Scalar: Any
    """``Scalar(number)``: has arithmetic, ``tanh`` and ``value``."""
    gradients: Any
    """``gradients(output, inputs)``: a list of Scalars."""
    vmap: Any
    """``vmap(f, in_dims)`` over lists."""


@dataclass(frozen=True)
class Ways:
    """What a stop's code ends with: functions without arguments that must give the same value."""

    equal: tuple[Callable[[], Any], ...]
    """The first is the one that the others are compared with."""
    unlike: Callable[[], Any] | None = None
    """What one might take for the same, and is not."""
    note: str = ""
    """A further sentence about what was computed."""


@dataclass(frozen=True)
class Way:
    """One way, after it ran."""

    label: str
    value: Any
    """A tree of detached tensors."""
    seconds: float
    """Median of up to 7 calls after a first one."""
    error: float
    """Largest difference from the first way's value, divided by that value's largest element
    where it is above 1; infinite where shapes differ."""


@dataclass(frozen=True)
class Stop:
    """One stop, after it ran."""

    title: str
    about: str
    """What one sees, in a sentence or two."""
    formula: str
    code: str
    """The body of the function that ran, from its source."""
    ways: tuple[Way, ...]
    unlike: Way | None
    note: str
    tolerance: float


@dataclass(frozen=True)
class Chapter:
    """Stops that belong together."""

    name: str
    title: str
    about: str
    stops: tuple[Callable[[], Stop], ...]
    source: str = ""
    """Code that the stops stand on, to be shown before them."""

    @property
    def preamble(self) -> str:
        """What the stops use of the module that they are written in: imports and functions."""
        text = inspect.getsource(_module_of(self.stops[0]))
        used = _names("\n".join(_body(_function_of(stop)) for stop in self.stops))
        shown: list[str] = []
        for node in reversed(ast.parse(text).body):
            if isinstance(node, ast.FunctionDef) and node.name in used:
                shown.append("\n" + (ast.get_source_segment(text, node) or ""))
                used |= _names(shown[-1])
            elif isinstance(node, ast.Import | ast.ImportFrom):
                node.names = [name for name in node.names if (name.asname or name.name) in used]
                if node.names:
                    shown.append(ast.unparse(node))
        return "\n".join(reversed(shown))


def stop(
    title: str, *, formula: str, tolerance: float = 1e-12
) -> Callable[[Callable[..., Ways]], Callable[..., Stop]]:
    """Make a stop of a function: its docstring says what one sees, its body is what is shown.

    Args:
        title: a heading.
        formula: what must come out.
        tolerance: the largest error (see `Way`) that still counts as equal.

    Returns:
        A decorator. The function that it gives runs and times every way; `check` judges them.
    """

    def decorate(function: Callable[..., Ways]) -> Callable[..., Stop]:
        @functools.wraps(function)
        def taken(*args: Any) -> Stop:
            ways = function(*args)
            first = _timed(ways.equal[0], None)
            return Stop(
                title=title,
                about=inspect.cleandoc(function.__doc__ or ""),
                formula=formula,
                code=_body(function),
                ways=(first, *(_timed(way, first.value) for way in ways.equal[1:])),
                unlike=_timed(ways.unlike, first.value) if ways.unlike else None,
                note=ways.note,
                tolerance=tolerance,
            )

        return taken

    return decorate


def check(stop: Stop) -> Stop:
    """The stop, if its ways agree and what must differ differs.

    Raises:
        DisagreementError: names the stop, the way and the error.
    """
    for way in stop.ways:
        if not way.error <= stop.tolerance:  # NaN counts as disagreement
            raise DisagreementError(
                f"{stop.title}: {way.label} and {stop.ways[0].label} differ by {way.error:.1e}, "
                f"more than {stop.tolerance:.0e}"
            )
    if stop.unlike is not None and not stop.unlike.error > stop.tolerance:
        raise DisagreementError(
            f"{stop.title}: {stop.unlike.label} and {stop.ways[0].label} must not agree"
        )
    return stop


def _timed(way: Callable[[], Any], reference: Any) -> Way:
    value = tree_map(_tensor, way())
    spent: list[float] = []
    while len(spent) < _REPEATS and sum(spent) < _BUDGET:
        start = time.perf_counter()
        way()
        spent.append(time.perf_counter() - start)
    error = 0.0 if reference is None else _error(value, reference)
    if reference is None and any(bool(x.isnan().any()) for x in leaves(value)):
        error = float("nan")
    return Way(way.__name__.replace("_", " "), value, statistics.median(spent), error)


def _tensor(value: Tensor | float) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return torch.tensor(value, dtype=torch.float64)


def _error(value: Any, reference: Any) -> float:
    pairs: list[tuple[Tensor, Tensor]] = list(zip(leaves(value), leaves(reference)))
    if len(leaves(value)) != len(leaves(reference)) or any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    differences = torch.stack([(a - b).abs().max() for a, b in pairs])
    largest = torch.stack([b.abs().max() for _, b in pairs]).max()
    return float(differences.max() / largest.clamp_min(1))


def _body(function: Callable[..., Ways]) -> str:
    """The source between the docstring and the closing ``return Ways(...)``."""
    text = textwrap.dedent(inspect.getsource(function))
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.FunctionDef)
    statements = node.body[1:-1] if ast.get_docstring(node) else node.body[:-1]
    begin = node.body[0].end_lineno if ast.get_docstring(node) else statements[0].lineno - 1
    lines = text.splitlines()[begin : node.body[-1].lineno - 1]
    return textwrap.dedent("\n".join(lines)).strip("\n")


def _names(code: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}


def _function_of(stop: Callable[[], Stop]) -> Callable[..., Ways]:
    """What the decorator `stop` was given."""
    taken = stop.func if isinstance(stop, functools.partial) else stop
    function: Callable[..., Ways] = inspect.unwrap(taken)
    return function


def _module_of(stop: Callable[[], Stop]) -> ModuleType:
    module = inspect.getmodule(_function_of(stop))
    assert module is not None
    return module
