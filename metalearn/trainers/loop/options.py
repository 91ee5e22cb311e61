"""Settings of a loop as keywords of trainers, so that editors and mypy know them.

The names and hints are those of `LoopSettings`, which describes them and checks their values; a
test holds one against the other. ``steps`` every trainer has in its own signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from metalearn.trainers.loop.schedules import Schedule
from metalearn.trainers.loop.settings import Compile

__all__ = ["LoopOptions", "UnseenLoopOptions"]


class UnseenLoopOptions(TypedDict, total=False):
    """`LoopSettings` of a trainer that has ``diagnostics`` in its own signature."""

    schedule: Schedule
    warmup: int
    schedule_end: float
    schedule_every: int | None
    schedule_factor: float | None
    schedule_start: float | None
    schedule_peak: float | None
    accumulate: int
    precision: Literal["float32", "bfloat16"]
    average: float | None
    clip: float | None
    log_every: int
    eval_every: int
    checkpoint_every: int
    patience: int | None
    progress: bool | None
    diagnostics_every: int
    deterministic: bool
    compile: Compile


class LoopOptions(UnseenLoopOptions, total=False):
    """`LoopSettings`, without ``steps``."""

    diagnostics: Sequence[str]
