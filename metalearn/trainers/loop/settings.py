"""How long a training goes on, how often it looks, and its learning-rate schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from metalearn.core.checks import check_number
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import known_fields
from metalearn.trainers.diagnostics import check_diagnostics
from metalearn.trainers.loop.schedules import Schedule, check_schedule, schedule_of

__all__ = ["Compile", "LoopSettings"]

Compile = Literal["auto", "always", "never"]
"""Whether the gradient of a step is compiled: where that pays, in any case, or not at all."""

_COUNTS = (
    "steps", "warmup", "accumulate", "log_every", "eval_every", "checkpoint_every", "patience",
    "diagnostics_every",
)  # fmt: skip


@known_fields
@dataclass(frozen=True)
class LoopSettings:
    """How long to train and how often to look.

    Attributes:
        steps: outer steps in all, at least 1.
        schedule: learning rate over the run: ``"cosine"`` and ``"linear"`` fall towards
            ``schedule_end`` at the last step, ``"constant"`` stays, ``"step"`` drops now and then,
            ``"one_cycle"`` rises and falls; the formulas are those of
            `metalearn.trainers.loop.schedules.schedule_of`.
        warmup: steps over which the rate rises linearly from 0 before that, below ``steps``.
        schedule_end: of cosine, linear and one_cycle: the factor at the end, in [0, 1).
        schedule_every: of step: steps between two drops; None is a third of those after the
            warm-up.
        schedule_factor: of step: factor of a drop, in (0, 1]; None is 0.1.
        schedule_start: of one_cycle: the factor at the start, in (0, 1]; None is 0.04.
        schedule_peak: of one_cycle: share of the steps at which the factor is 1, in [0, 1); None is
            0.3.
        accumulate: batches a step, whose gradients are averaged as those of one large batch; each
            counts by its size. Records and diagnostics of a step are of its last batch.
        precision: type in which networks are computed in training: ``"float32"`` is that of the
            weights, whatever it is; ``"bfloat16"`` has eight bits. Weights, inner steps, losses and
            gradients stay in the type of the weights, and so do validation and tests. The log says
            by how much the first gradient differs.
        average: decay in (0, 1) of an exponential average of the weights, such as 0.999, which is
            validated, tested and kept as the best in their place; None averages nothing. See
            `metalearn.trainers.loop.average.WeightAverage`.
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
        compile: whether the gradient of a step is compiled: ``"auto"`` where the steps that are
            left pay for it (never with ``deterministic``), ``"always"`` from the first on, or
            ``"never"``; see `metalearn.trainers.loop.compiled_part.CompiledPart`. Which it was is
            in checkpoints.

    Raises:
        SettingError: a value out of range.
    """

    steps: int = 1000
    schedule: Schedule = "cosine"
    warmup: int = 0
    schedule_end: float = 0.0
    schedule_every: int | None = None
    schedule_factor: float | None = None
    schedule_start: float | None = None
    schedule_peak: float | None = None
    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    average: float | None = None
    clip: float | None = 10.0
    log_every: int = 50
    eval_every: int = 250
    checkpoint_every: int = 250
    patience: int | None = None
    progress: bool | None = None
    diagnostics: Sequence[str] = ()
    diagnostics_every: int = 50
    deterministic: bool = False
    compile: Compile = "auto"

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if name != "patience" or self.patience is not None:
                check_whole(name, getattr(self, name), 0 if name == "warmup" else 1, 2**63 - 1)
        check_diagnostics(self.diagnostics)
        if not isinstance(self.deterministic, bool):
            raise SettingError("deterministic", self.deterministic, "true or false is needed")
        if self.compile not in get_args(Compile):
            raise SettingError("compile", self.compile, "auto, always or never is needed")
        if self.warmup >= self.steps:
            raise SettingError("warmup", self.warmup, f"fewer than steps={self.steps} are accepted")
        check_schedule(self)
        if not isinstance(self.progress, bool | None):
            raise SettingError("progress", self.progress, "True, False or None is needed")
        if self.precision not in ("float32", "bfloat16"):
            raise SettingError("precision", self.precision, "float32 or bfloat16 is needed")
        if self.average is not None:
            check_number("average", self.average, above=0, below=1)
        number = isinstance(self.clip, int | float) and not isinstance(self.clip, bool)
        if self.clip is not None and not (number and self.clip > 0):
            raise SettingError("clip", self.clip, "None or a number above 0 is needed")

    def rate(self, step: int) -> float:
        """Factor of the learning rate at a step counted from 0, at most 1."""
        return schedule_of(self)(step)
