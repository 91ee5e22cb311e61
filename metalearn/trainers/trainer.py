"""What all trainers have in common for those who use them: a loop, and the way to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metalearn.data.checksums import data_checksum
from metalearn.models import SavedWeights, read_weights
from metalearn.reprs import network_in_words, one_line
from metalearn.signatures import checked
from metalearn.tracking import Tracker, TrackerChoice
from metalearn.trainers.diagnostics import DiagnosisData, DiagnosticSource
from metalearn.trainers.loop.asked_trackers import asked_tracker
from metalearn.trainers.loop.initial_weights import start_from
from metalearn.trainers.loop.loop import Loop
from metalearn.trainers.loop.result import FitResult
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.loop.shared_members import mean_gradient, prepare
from metalearn.trainers.loop.step import StepGradient
from metalearn.trainers.loop.stop_signal import StopRequest
from metalearn.trainers.report import Report
from metalearn.types import Split

__all__ = ["Trainer"]


class Trainer:
    """A training that has been assembled: `fit` it, `save` it, `resume` it.

    A trainer of one's own makes its objective and evaluator, and hands over the loop of them.

    Args:
        loop: see `metalearn.trainers.loop.loop.Loop`.
    """

    makes_module: ClassVar[tuple[str, ...]] = ()
    """Settings by which the module is made, so that a run that is resumed keeps them."""
    chooses_best: ClassVar[tuple[str, ...]] = ()
    """Settings by which the best state is chosen, so that a run that is resumed keeps them."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def __repr__(self) -> str:
        loop = self.loop
        done = f"step {loop.step:,} of {loop.settings.steps:,}"
        return one_line(self, network_in_words(loop.module), done, f"on {loop.device}")

    def fit(self) -> FitResult:
        """Train to the last step, to the end of patience, or to a signal; then save.

        A validation that a signal breaks off leaves no trace and is made first of all by a trainer
        that resumes. A trainer that has nothing left to do writes nothing.

        Raises:
            NonFiniteError: a loss or gradient that is not finite; the state before that step has
                been saved if the trainer has a folder. At the end: every validation was NaN.
            DataError: the best parameters are not known; see `check_best`.
            OSError: a checkpoint or record cannot be written; the last checkpoint is whole.
        """
        return self.loop.fit()

    def save(self, name: str) -> Path | None:
        """Write ``checkpoints/<name>.pt``: all that `resume` needs. None without a folder.

        Raises:
            OSError: what the system refuses; so is a folder that was taken away meanwhile.
        """
        return self.loop.save(name)

    @checked
    def start_from(
        self, source: str | Path | SavedWeights, *, skip: Sequence[str] = ()
    ) -> SavedWeights:
        """Take the weights of a run or a file, before training; gives what was read.

        Names are those of the trainer's module, which is not the given model where a learner wraps
        it or its norms are converted: `metalearn.models.load_weights` puts weights into the model
        itself. What a run learnt beside the weights, such as inner step sizes, is taken too, under
        names that begin with ``learnt.``; a file has none, and leaves them as they are. The
        optimiser starts anew.

        Args:
            source: see `metalearn.models.read_weights`.
            skip: patterns of names that stay as they are.

        Raises:
            SettingError: nothing there, a pattern that matches nothing.
            DataError: names or shapes that do not fit.
        """
        weights = source if isinstance(source, SavedWeights) else read_weights(source)
        start_from(self.loop, weights, skip)
        return weights

    @checked
    def resume(self, path: str | Path) -> None:
        """Go on from a checkpoint as if the run had never stopped.

        Raises:
            DataError: a file that is no checkpoint, or one of another module or optimiser.
        """
        self.loop.checkpoints.resume(Path(path))

    def check_best(self) -> None:
        """Refuse to go on where the best parameters so far are not known.

        Raises:
            DataError: ``best.pt`` was not beside the resumed checkpoint.
        """
        self.loop.checkpoints.check_best()

    def load_best(self) -> None:
        """Put the parameters of the best validation into the module.

        Raises:
            DataError: none are known; see `check_best`.
        """
        self.loop.checkpoints.load_best()

    def stoppable(self) -> AbstractContextManager[StopRequest]:
        """Note signals that ask to stop; validation, tests and diagnostics then raise `Stopped`."""
        return self.loop.stop.listening()

    def prepare(self) -> None:
        """Decide what is decided once, such as engines; `fit` does so before it begins."""
        prepare(self.loop.objective, self.loop.ranks)

    def gradient(self, step: int) -> StepGradient:
        """Losses and gradients of training step ``step``, means over its batches."""
        self.prepare()
        return mean_gradient(self.loop, step, looked_at=True)[1]

    def validate(self) -> Mapping[str, float]:
        """Validation numbers at the current parameters; ``monitor`` is one of them.

        Where an average of the weights is kept, they are those of the average.
        """
        with self.loop.averaged():
            return self.loop.evaluator(self.loop.step).numbers

    def averaged(self) -> AbstractContextManager[None]:
        """A block in which the module holds the average of its weights, where one is kept."""
        return self.loop.averaged()

    def reports(
        self, split: Split = "test", *, tasks: int = 600, inductive: bool | None = True
    ) -> Mapping[str, Report]:
        """Scores of the module as it stands, by the name under which they are shown; none here.

        Args:
            split: that is scored.
            tasks: how many, where the training is on tasks.
            inductive: whether tasks are scored a second time, with each query alone beside the
                support set, where normalisation takes statistics of the whole query set; None
                where such a score chose the best state.
        """
        return {}

    def results(self) -> Mapping[str, Any]:
        """Further entries of ``results.json`` by name, plain values; none here."""
        return {}

    def remarks(self) -> list[str]:
        """Further lines to be printed of a finished training; none here."""
        return []

    def member_settings(self) -> list[dict[str, float]]:
        """What differs between members, as rows for the comparison of runs; none here."""
        return []

    def diagnosis_sources(self, data: DiagnosisData) -> Iterator[tuple[str, DiagnosticSource]]:
        """What ``diagnose`` looks at, as the module stands, by name."""
        return iter(())

    def rate(self, step: int) -> float:
        """Factor of the learning rate at a step counted from 0."""
        return self.loop.schedule(step)

    @property
    def data_checksum(self) -> str | None:
        """SHA-256 of the data that it trains on; None of data that are computed, or not ours."""
        tasks = getattr(self, "tasks", None)
        return data_checksum(getattr(self if tasks is None else tasks, "data", None))

    @property
    def module(self) -> nn.Module:
        """Whose parameters are trained."""
        return self.loop.module

    @property
    def settings(self) -> LoopSettings:
        """Length and cadence."""
        return self.loop.settings

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return self.loop.device

    @property
    def folder(self) -> Path | None:
        """Of the run."""
        return self.loop.checkpoints.folder

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The outer optimiser."""
        return self.loop.update.optimizer

    @property
    def tracker(self) -> Tracker:
        """Where numbers and figures go."""
        return self.loop.tracker

    @tracker.setter
    def tracker(self, tracker: TrackerChoice) -> None:
        alone = self.loop.ranks.rank == 0
        self.loop.tracker = asked_tracker(tracker, self.folder, alone=alone)

    @property
    def step(self) -> int:
        """Steps taken so far."""
        return self.loop.step

    @property
    def seconds(self) -> float:
        """Wall time in training and validation, over all resumptions."""
        self.loop.spent.read()
        return self.loop.spent.seconds

    @property
    def finished(self) -> bool:
        """Whether `fit` has nothing left to do."""
        return self.loop.finished

    @property
    def validation_due(self) -> bool:
        """Whether `fit` validates before it takes a step."""
        return self.loop.validation_due

    @property
    def monitor(self) -> str:
        """Name of the validation number that decides what is best."""
        return self.loop.evaluator.monitor

    @property
    def larger_is_better(self) -> bool:
        """Of the monitor."""
        return self.loop.evaluator.larger_is_better

    @property
    def bands(self) -> Mapping[str, Sequence[str]]:
        """Records with ends ``<name>_low`` and ``<name>_high``, by what the ends are."""
        return self.loop.evaluator.bands

    @property
    def best_step(self) -> int:
        """Step of the best validation; −1 before the first."""
        return self.loop.population.best_step

    @property
    def best_value(self) -> float:
        """The monitor there; of members, the median of each one's best."""
        return self.loop.population.best_value

    @property
    def active(self) -> Tensor:
        """``[M]``: whether a member is still trained; one entry for a single module."""
        return self.loop.population.active

    @property
    def diverged(self) -> Tensor:
        """``[M]``: whether a member became not finite."""
        return self.loop.population.diverged

    @property
    def endings(self) -> Mapping[int, str]:
        """Why a member is not trained any more, by its index."""
        return self.loop.population.endings

    @property
    def best_values(self) -> Tensor:
        """``[M]``: each member's best score."""
        return self.loop.population.best_values

    @property
    def best_steps(self) -> Tensor:
        """``[M]``: the step of each member's best score; −1 before the first."""
        return self.loop.population.best_steps
