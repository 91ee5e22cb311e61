"""Which engine takes a loss of tasks, rightly and with gain: found by trials.

Axes: T tasks.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from metalearn.core.loss_checks import UnreachedError
from metalearn.core.memory import is_out_of_memory
from metalearn.core.meta.agreement import Trials
from metalearn.core.meta.engines import Engine, structural_engine
from metalearn.core.ops import counting_operations
from metalearn.core.tree import leaves
from metalearn.core.vectorization import VectorizationError
from metalearn.errors import SettingError

__all__ = ["engine_by_trial"]

_FEW = 10_000  # parameters up to which operations cost more by their number than by their size


def engine_by_trial(trials: Trials, elementwise: bool) -> tuple[Engine, list[str]]:
    """The first of batched, vmap, loop that takes the loss, agrees with the loop and gains.

    And a sentence for each that does not. Batched gains by convolutions and norms, or where the
    parameters are few.
    """
    found, reason = structural_engine(elementwise)
    notes = [reason] if reason else []
    candidates: list[Engine] = ["batched", "vmap", "loop"]
    for engine in candidates[candidates.index(found) :]:
        try:
            with counting_operations() as used, _unbatched() as slow:
                result = trials(engine)
        except Exception as error:
            unfit = isinstance(error, UnreachedError | VectorizationError)
            wrong = isinstance(error, SettingError) and not unfit
            if wrong or engine == "loop" or is_out_of_memory(error):
                raise
            notes.append(f"{engine} cannot take this loss ({_first_line(error)})")
            continue
        if engine == "batched":
            if slow:
                notes.append(f"batched runs {', '.join(sorted(slow))} for one task after another")
                continue
            if not used.operations and sum(g.numel() for g in leaves(result.grads)) > _FEW:
                notes.append("no convolution or normalisation gains from batched")
                continue
        gap = "" if engine == "loop" else trials.disagreement(engine, result)
        if gap:
            notes.append(f"{engine} {gap}")
            continue
        if engine != "loop" and trials.note:
            notes.append(trials.note)
        return engine, notes
    raise AssertionError("the loop either works or raises")


@contextmanager
def _unbatched() -> Iterator[set[str]]:
    """Names of operations that vmap has no rule for, after the block; torch warns of them."""
    names: set[str] = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield names
    shown: dict[Any, Any] = {}
    for warning in caught:
        named = re.search(r"batching rule for (\S+)\. ", str(warning.message))
        if named:
            names.add(named[1])
        else:
            warnings.warn_explicit(
                warning.message,
                warning.category,
                warning.filename,
                warning.lineno,
                registry=shown,
            )


def _first_line(error: BaseException) -> str:
    if isinstance(error, VectorizationError):
        return error.reason
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
