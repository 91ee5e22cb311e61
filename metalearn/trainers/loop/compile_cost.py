"""What compiling a step would cost, and what it would save.

Axes: none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.core.compilation import CompiledFunction
from metalearn.core.memory import synchronize

__all__ = ["Offer", "offer_of", "seconds_of", "worth_a_look"]

_LEAST_CALLS = 1000
"""Fewer that are left are not compiled for, nor traced: of an operation, compiling takes at least
20 ms, from the cache too, and saves some 15 µs a call (sine waves, one core)."""
_LEAST_GAIN = 5.0
"""Seconds that a run has to become shorter by."""
_LONGEST = 600.0
"""Seconds of compiling, which no signal ends."""
_BEST = 0.1
"""Share of a call's time that compiled code takes at least, for what a run may gain at most."""
_SECONDS_PER_OPERATION = 0.08
"""Of compiling a graph that is not in the cache, on one core."""
_SHARE = 3
"""A compiled operation is taken to save the time of so many calls of a small one: its own, that of
memory that is not asked for, and of Python around it."""


@dataclass(frozen=True)
class Offer:
    """What is expected of compiling a function for some calls."""

    operations: int
    compiling: float
    """Seconds, once."""
    known: bool
    """Whether that is what the same graph took before."""
    saved: float
    """Seconds, of all calls that are left."""

    @property
    def pays(self) -> bool:
        """Whether the run becomes shorter by some seconds."""
        return self.saved - self.compiling >= _LEAST_GAIN and self.compiling <= _LONGEST

    @property
    def pays_too(self) -> bool:
        """Whether the run becomes no longer, where other graphs are compiled anyway."""
        return self.saved >= self.compiling and self.compiling <= _LONGEST

    def __str__(self) -> str:
        about = "as before" if self.known else "an estimate"
        return (
            f"{self.operations:,} operations, {self.compiling:.0f} s to compile ({about}), "
            f"{self.saved:.0f} s saved over the run"
        )


def worth_a_look(seconds: float, calls: int) -> bool:
    """Whether so many calls of so many seconds could pay at all, before anything is traced."""
    return calls >= _LEAST_CALLS and (1 - _BEST) * seconds * calls >= _LEAST_GAIN


def offer_of(
    function: CompiledFunction,
    args: Sequence[object],
    seconds: float,
    calls: int,
    *,
    each: float = _SECONDS_PER_OPERATION,
) -> Offer:
    """The offer for a function that takes so many seconds as it is, and is called so many times.

    Compiled, it takes what its graph takes operation by operation less what small operations cost
    by themselves, and at least a tenth: measured here, once. Where compiling it is new, it is taken
    to last ``each`` seconds for an operation.

    Raises:
        CompilationError: the function cannot be traced.
    """
    trace = function.trace(*args)
    graph = trace.seconds(args)
    left = max(graph - _SHARE * _of_a_small_operation() * trace.operations, _BEST * graph)
    known = function.expected_seconds(*args)
    compiling = each * trace.operations if known is None else known
    return Offer(trace.operations, compiling, known is not None, max(seconds - left, 0) * calls)


def seconds_of(function: Callable[[], object], device: torch.device) -> tuple[object, float]:
    """What a function gives, and how long it took, work on an accelerator included."""
    synchronize(device)
    start = time.perf_counter()
    found = function()
    synchronize(device)
    return found, time.perf_counter() - start


def _of_a_small_operation() -> float:
    """Seconds of one on the CPU, the least of some."""
    value: Tensor = torch.ones(8)
    with torch.no_grad():
        return min(
            seconds_of(lambda: [value + 1 for _ in range(100)], value.device)[1] / 100
            for _ in range(3)
        )
