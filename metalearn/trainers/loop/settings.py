"""How long a training goes on, how often it looks, and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from metalearn.errors import SettingError, check_whole
from metalearn.trainers.diagnostics import check_diagnostics

__all__ = ["LoopSettings"]

_NO_COUNTS = ("schedule", "clip", "progress", "diagnostics", "deterministic")


@dataclass(frozen=True)
class LoopSettings:
    """How long to train and how often to look.

    Attributes:
        steps: outer steps in all, at least 1.
        schedule: learning rate over the run: ``"cosine"`` falls towards 0 at the last step,
            ``"constant"`` stays.
        warmup: steps over which the rate rises linearly from 0 before that, below ``steps``.
        clip: largest norm of the outer gradient; larger ones are scaled down to it. None: no limit.
        log_every: steps between two records of the training itself.
        eval_every: steps between two validations.
        checkpoint_every: steps between two saves of ``checkpoints/last.pt``.
        patience: validations without improvement after which training stops; None never stops.
        progress: show a bar; None shows it on a terminal.
        diagnostics: what to show of the gradients: names of `metalearn.trainers.diagnostics`.
        diagnostics_every: steps between two looks of them.
        deterministic: engines, methods and chunks follow from the model and the settings alone:
            nothing is timed, and what memory is free does not matter.

    Raises:
        SettingError: a value out of range.
    """

    steps: int = 1000
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = 0
    clip: float | None = 10.0
    log_every: int = 50
    eval_every: int = 250
    checkpoint_every: int = 250
    patience: int | None = None
    progress: bool | None = None
    diagnostics: Sequence[str] = ()
    diagnostics_every: int = 50
    deterministic: bool = False

    def __post_init__(self) -> None:
        least = {"warmup": 0}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _NO_COUNTS or (field.name == "patience" and value is None):
                continue
            low = least.get(field.name, 1)
            check_whole(field.name, value, low, 2**63 - 1)
        check_diagnostics(self.diagnostics)
        if not isinstance(self.deterministic, bool):
            raise SettingError("deterministic", self.deterministic, "true or false is needed")
        if self.warmup >= self.steps:
            raise SettingError("warmup", self.warmup, f"fewer than steps={self.steps} are accepted")
        if self.schedule not in ("cosine", "constant"):
            raise SettingError("schedule", self.schedule, "cosine or constant is needed")
        if not isinstance(self.progress, bool | None):
            raise SettingError("progress", self.progress, "True, False or None is needed")
        number = isinstance(self.clip, int | float) and not isinstance(self.clip, bool)
        if self.clip is not None and not (number and self.clip > 0):
            raise SettingError("clip", self.clip, "None or a number above 0 is needed")

    def rate(self, step: int) -> float:
        """Factor of the learning rate at a step counted from 0, in (0, 1]."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.schedule == "constant":
            return 1.0
        done = (step - self.warmup) / (self.steps - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * done))
