"""What a loop is assembled from: an objective, an evaluator, callbacks.

Axes: M members, or 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from metalearn.ranks import Ranks, Share
from metalearn.schema import Kind, mapping
from metalearn.tracking import Tracker
from metalearn.trainers.loop.clock import Clock, Spent
from metalearn.trainers.loop.outer_optimizer import OuterUpdate
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.loop.step import Proposes, StepGradient
from metalearn.trainers.loop.stop_signal import StopSignal
from metalearn.trainers.members.population import Population
from metalearn.types import Params

__all__ = [
    "Average",
    "Callback",
    "Divisible",
    "Evaluation",
    "Evaluator",
    "Objective",
    "Stateless",
    "Training",
]


class Objective(Protocol):
    """What a step descends. Everything follows from the step's number alone."""

    unit: str
    """What a batch is made of: ``"tasks"`` or ``"samples"``."""

    def prepare(self) -> None:
        """Decide what is decided once, such as engines; kept in `state`."""

    def batch(self, step: int) -> Any:
        """The batch of a step: drawn once, shared by gradient, records and diagnostics.

        Where a step has several, they are counted over the training.
        """

    def gradient(self, params: Params, batch: Any, *, step: int) -> StepGradient:
        """Sums of losses and gradients over a batch.

        Args:
            params: the module's trainable parameters by name.
            batch: what `batch` gave, or a rank's part of it.
            step: counted from 0.
        """

    def unused_parameters(self) -> Iterable[str]:
        """Names of parameters without a part in the loss, which the optimiser is to skip.

        Asked once a run, at its first step, and answered for the run's first batch, so that a
        resumed run has the same answer.
        """

    def records(self, batch: Any, gradient: StepGradient, *, step: int) -> Mapping[str, float]:
        """Further numbers of a step that is logged, before its update."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, plain or tensors; names are shared with the other parts."""

    def state_kinds(self) -> list[Kind]:
        """What a checkpoint has to hold so that `load_state` can take it."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave; entries of other parts are passed over."""


def _no_figures(tracker: Tracker, step: int) -> None:
    return


@dataclass(frozen=True)
class Evaluation:
    """What a validation found."""

    numbers: Mapping[str, float]
    """By name, as ``"validation/accuracy"``; the evaluator's ``monitor`` is one of them."""
    scores: Tensor
    """``[M]``: what decides which state of a member is best."""
    draw: Callable[[Tracker, int], None] = _no_figures
    """Leaves figures and curves with a tracker, of a validation after so many steps."""


class Evaluator(Protocol):
    """Scores the parameters as they stand on the validation split."""

    monitor: str
    """Name of the number that decides what is best."""
    larger_is_better: bool

    @property
    def bands(self) -> Mapping[str, Sequence[str]]:
        """Records with ends ``<name>_low`` and ``<name>_high``, by what the ends are."""

    def __call__(self, step: int) -> Evaluation:
        """The validation after ``step`` steps."""

    def state(self) -> dict[str, Any]:
        """As of an `Objective`."""

    def state_kinds(self) -> list[Kind]:
        """As of an `Objective`."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """As of an `Objective`."""


class Divisible(Protocol):
    """An objective whose steps ranks can share; others are trained by one process alone."""

    divides_members: bool
    """Whether ranks divide the members, each of which sees its whole batch."""

    def divide(self, share: Share) -> None:
        """Take a rank's share of every batch, or of the members, from here on.

        Raises:
            SettingError: there is too little for so many ranks, or what cannot be divided.
        """

    def part(self, batch: Any) -> AbstractContextManager[Any]:
        """A block in which networks see this rank's part of a batch, which it gives.

        All of it where members are divided.
        """


class Stateless:
    """A part of a loop that has nothing to keep in a checkpoint."""

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def state_kinds(self) -> list[Kind]:
        """Anything."""
        return [mapping({})]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""
        return


class Average(Protocol):
    """An average of what is trained, over the steps so far."""

    def in_place(self) -> AbstractContextManager[None]:
        """A block in which the module, and what is learnt beside it, hold the average."""

    def restart(self) -> None:
        """Begin anew, with the weights as they stand."""


class Training(Protocol):
    """What callbacks and checkpoints see of a loop: its parts, and how far it is."""

    module: nn.Module
    beside: nn.Module | None
    """What is learnt beside the module."""
    objective: Objective
    evaluator: Evaluator
    update: OuterUpdate
    population: Population
    callbacks: tuple[Callback, ...]
    average: Average | None
    """Which is validated in place of the weights; None where they are themselves."""
    stop: StopSignal
    ranks: Ranks
    """That share the training."""
    tracker: Tracker
    device: torch.device
    step: int
    """Steps taken so far; while one is taken, its number, counted from 0."""
    spent: Spent
    """Time in training and validation."""
    clock: Clock
    """Of the speed that is shown, paused in what is no training."""
    proposed: Proposes | None
    """Computes a step's update ahead of it, by compiled code; None where each is made as it is."""
    validation_due: bool
    """Whether a validation comes before the next step."""

    settings: LoopSettings

    params: dict[str, Tensor]
    """Those that are trained, by name, without a graph."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Of the module and of what is learnt beside it, by name."""

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""

    def meet(self) -> None:
        """Have all members as they are now, where ranks divide them; all ranks come here."""

    def set_rates(self, step: int, factor: float | None = None) -> float:
        """Set the learning rates of a step; the factor of the schedule, where it is not known."""

    def check_parameters(self) -> None:
        """Refuse parameters that are not finite; of members, freeze those that have some."""

    def save(self, name: str) -> Path | None:
        """Write ``checkpoints/<name>.pt``."""

    def averaged(self) -> AbstractContextManager[None]:
        """A block in which the module holds the average of its weights, where one is kept."""


class Callback(Stateless):
    """Looks on at a loop: diagnostics, collected iterates. A subclass says at which moments."""

    def during(self, loop: Training) -> AbstractContextManager[None]:
        """A block around all steps of a `fit`, entered before `begin`."""
        return nullcontext()

    def begin(self, loop: Training) -> None:
        """Training begins, or goes on."""
        return

    def looks_at(self, step: int) -> bool:
        """Whether it looks at the gradients of a step, so that members of other ranks are there."""
        return False

    def member_rows(self) -> dict[str, Tensor]:
        """What it keeps of each member, by the names of the module's state, ``[m, ...]``."""
        return {}

    def before_step(self, loop: Training, step: int) -> None:
        """Before the batch of a step is drawn."""
        return

    def after_gradient(self, loop: Training, batch: Any, grads: Mapping[str, Tensor]) -> None:
        """The gradients of step ``loop.step``, means over the batch, before clipping.

        What a stop breaks off here has to leave no trace: the step is taken anew later.
        """
        return

    def after_update(self, loop: Training) -> None:
        """After step ``loop.step`` of the module; together with it, or not at all."""
        return

    def after_validation(self, loop: Training, evaluation: Evaluation) -> None:
        """A validation has been recorded, and is about to decide what is best."""
        return
