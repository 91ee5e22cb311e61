"""How a training ended."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from metalearn.errors import NonFiniteError
from metalearn.trainers.loop.protocols import Training

__all__ = ["FitResult", "fit_result"]


@dataclass(frozen=True)
class FitResult:
    """How a training ended."""

    step: int
    reason: Literal["finished", "patience", "interrupted"]
    best_step: int
    best_value: float
    best_name: str
    seconds: float
    """Wall time in training and validation, over all resumptions."""
    signal: int | None = None
    cpu_seconds: float = math.nan
    """Of the processor in that time, in all threads; NaN where an earlier release began."""


def fit_result(loop: Training, folder: Path | None, signal: int | None) -> FitResult:
    """What became of a training that has stopped.

    Args:
        loop: that trained.
        folder: of the run, for the message.
        signal: that asked for the stop, if one did.

    Raises:
        NonFiniteError: it has come to its end, and every validation was NaN.
    """
    reason: Literal["finished", "patience", "interrupted"] = "interrupted"
    if loop.finished:
        reason = "finished" if loop.step >= loop.settings.steps else "patience"
    best, monitor = loop.population.best_value, loop.evaluator.monitor
    if reason != "interrupted" and math.isnan(best):
        where = f"; the last state is in {folder / 'checkpoints'}" if folder else ""
        raise NonFiniteError(
            f"step {loop.step}: {monitor} was NaN in every validation, so that no state "
            f"is known to be good{where}"
        )
    best_step = loop.population.best_step
    spent = loop.spent
    return FitResult(
        loop.step, reason, best_step, best, monitor, spent.seconds, signal, spent.cpu_seconds
    )
