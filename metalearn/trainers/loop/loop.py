"""The loop that every trainer assembles: step, validate, log, save, resume, stop.

Axes: M members, or 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from metalearn.errors import NonFiniteError
from metalearn.ranks import OneRank, Ranks
from metalearn.stretches import watched_by
from metalearn.tracking import Progress, Tracker, TrackerChoice
from metalearn.tracking.progress import shown_stretch
from metalearn.trainers.loop.asked_trackers import asked_tracker, begun_tracker
from metalearn.trainers.loop.checkpointing import Checkpoints
from metalearn.trainers.loop.clock import Clock, Spent, process_memory
from metalearn.trainers.loop.outer_optimizer import OuterUpdate
from metalearn.trainers.loop.protocols import Average, Callback, Evaluator, Objective
from metalearn.trainers.loop.result import FitResult, fit_result
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.loop.shared_members import divided, mean_gradient, prepare
from metalearn.trainers.loop.step import Proposal, Proposes, StepGradient
from metalearn.trainers.loop.stop_signal import Stopped, StopSignal
from metalearn.trainers.loop.updating import make_update
from metalearn.trainers.loop.validation import validate
from metalearn.trainers.members.not_finite import Ending
from metalearn.trainers.members.population import Population
from metalearn.trainers.members.trained import trained_parameters

__all__ = ["Loop"]


_IN_BAR = {"train/accuracy_after": "accuracy", "privacy/epsilon": "epsilon"}
"""By the name of a record, that behind the bar."""


class Loop:
    """A training, assembled from its parts.

    A step is five functions in a row: the objective's gradient, the sum over ranks, the mean, the
    clipping, the update.

    Args:
        module: whose parameters are trained, in place.
        objective: what a step descends.
        evaluator: scores the parameters on the validation split.
        update: changes the parameters by their gradients.
        population: keeps what is known of each network in the module.
        settings: length and cadence.
        schedule: factor of the learning rate at a step counted from 0; None is that of
            ``settings``.
        beside: what is learnt beside the module, if anything.
        callbacks: that look on.
        average: of what is trained, validated in its place; None validates the weights themselves.
        ranks: processes that share the training; one by default. The first alone keeps records
            and checkpoints.
        stop: that the objective and the evaluator listen to as well.
        tracker: where numbers and figures go, or names such as ``"csv"``; nowhere by default.
        folder: of the run; ``checkpoints/last.pt`` and ``best.pt`` are kept in it. None saves
            nothing.
        device: where the module is.
    """

    def __init__(
        self,
        module: nn.Module,
        objective: Objective,
        evaluator: Evaluator,
        *,
        update: OuterUpdate,
        population: Population,
        settings: LoopSettings,
        schedule: Callable[[int], float] | None = None,
        beside: nn.Module | None = None,
        callbacks: Sequence[Callback] = (),
        average: Average | None = None,
        ranks: Ranks | None = None,
        stop: StopSignal | None = None,
        tracker: TrackerChoice | None = None,
        folder: str | Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.module, self.beside = module, beside
        self.objective, self.evaluator = objective, evaluator
        self.update, self.population = update, population
        self.settings, self.schedule = settings, schedule or settings.rate
        self.callbacks, self.average = tuple(callbacks), average
        self.ranks: Ranks = ranks or OneRank()
        self.stop = stop or StopSignal()
        alone = self.ranks.rank == 0  # to write and to show anything
        self._shows_progress = settings.progress if alone else False
        place = Path(folder) if folder and alone else None
        self.tracker: Tracker = asked_tracker(tracker, place, alone=alone)
        self.device = torch.device(device)
        self.checkpoints = Checkpoints(self, place)
        self.parameters = trained_parameters(module, beside)
        self.params = {n: p.detach() for n, p in self.parameters.items() if p.requires_grad}
        self.step = 0
        self.spent, self.clock = Spent(), Clock()
        self.validation_due = True
        self._shown: dict[str, float] = {}
        self._unused: frozenset[str] | None = None
        self.proposed: Proposes | None = None
        self.shared = divided(self)

    @property
    def finished(self) -> bool:
        """Whether `fit` has nothing left to do."""
        ended = self.step >= self.settings.steps or self.population.out_of_patience
        return ended and not self.validation_due

    def fit(self) -> FitResult:
        """Train to the last step, to the end of patience, or to a signal; then save.

        A validation that a signal breaks off leaves no trace and is made first of all by a trainer
        that resumes. A trainer that has nothing left to do writes nothing.

        Raises:
            NonFiniteError: a loss or gradient that is not finite; the state before that step has
                been saved if the trainer has a folder. At the end: every validation was NaN.
            DataError: the best parameters are not known; see `Checkpoints.check_best`.
            OSError: a checkpoint or record cannot be written; the last checkpoint is whole.
        """
        self.checkpoints.check_best()
        self.checkpoints.make_folder()
        self.tracker = begun_tracker(self)
        with (
            self.spent.counted(),
            self.stop.listening(),
            watched_by(partial(shown_stretch, enabled=self._shows_progress)),
            Progress(self.settings.steps, self.step, enabled=self._shows_progress) as bar,
        ):
            with suppress(Stopped):  # what is broken off is done again by who resumes
                self._go_on(bar)
            if self.checkpoints.unsaved:
                self.save("last")
            received = self.stop.received
        self.tracker.flush()
        return fit_result(self, self.checkpoints.folder, received)

    def save(self, name: str) -> Path | None:
        """Write ``checkpoints/<name>.pt``: all that `Checkpoints.resume` needs.

        None without a folder.

        Raises:
            NonFiniteError: parameters that are not finite.
            OSError: what the system refuses; so is a folder that was taken away meanwhile.
        """
        nowhere = self.checkpoints.folder is None
        if nowhere and self.ranks.count == 1:
            return None
        self.meet()
        self.check_parameters()
        self.spent.read()
        return None if nowhere else self.checkpoints.write(name)

    def meet(self) -> None:
        """Have all members as they are now, where ranks divide them; all ranks come here."""
        if self.shared is not None:
            self.shared.meet()

    def check_parameters(self) -> None:
        """Refuse parameters that are not finite; of members, freeze those that have some.

        Raises:
            NonFiniteError: training cannot go on.
        """
        try:
            self.population.check_parameters(self.step)
        except Ending as ending:
            self._end(ending)

    def set_rates(self, step: int, factor: float | None = None) -> float:
        """Set the learning rates of a step; the factor of the schedule, where it is not known."""
        factor = self.schedule(step) if factor is None else factor
        for group, rate in zip(self.update.optimizer.param_groups, self.update.base_rates):
            group["lr"] = rate * factor
        return factor

    def averaged(self) -> AbstractContextManager[None]:
        """A block in which the module holds the average of its weights, where one is kept."""
        return nullcontext() if self.average is None else self.average.in_place()

    def _go_on(self, bar: Progress) -> None:
        """All that is left to do."""
        total = self.settings.steps
        if not self.finished:
            prepare(self.objective, self.ranks)
        if self.validation_due:
            if self.population.best_step < 0:
                self.save("last")  # however long the validation takes, what is decided is kept
            validate(self)
            self.save("last")
        self.clock.restart()
        with ExitStack() as blocks:
            for callback in self.callbacks:
                blocks.enter_context(callback.during(self))
                callback.begin(self)
            while self.step < total and not self.population.out_of_patience:
                self.stop.agree()
                if self.stop.received:
                    break
                self._take_step(bar)
                if self._due(self.settings.eval_every):
                    self.validation_due = True
                    with self.clock.paused():
                        validate(self)
                if self._due(self.settings.checkpoint_every):
                    self.save("last")

    def _take_step(self, bar: Progress) -> None:
        step, clock = self.step, self.clock
        for callback in self.callbacks:
            callback.before_step(self, step)
        due = (step + 1) % self.settings.log_every == 0 or step == 0
        batch, gradient = mean_gradient(self, step, looked_at=due)
        with clock.paused():
            for callback in self.callbacks:
                callback.after_gradient(self, batch, gradient.grads)
        factor = self.schedule(step)
        grads, loss, norm, proposal = self._clip(gradient, factor)
        records: dict[str, float] = {}
        if due:
            with clock.paused():
                records = self._records(batch, gradient)
        make_update(self, grads, gradient.buffers, factor, proposal)
        clock.count(gradient.count if gradient.processed is None else gradient.processed)
        for name, label in _IN_BAR.items():
            if name in records:
                self._shown[label] = records[name]  # until the next record
        speed = f"{self.objective.unit}_per_s"
        losses = {"loss": loss} if gradient.shows_losses else {}
        bar.update(1, **{**losses, **self._shown, speed: clock.rate()})
        if due:
            numbers = {
                **{f"train/{name}": value for name, value in losses.items()},
                "train/gradient_norm": norm,
                "train/learning_rate": self.update.base_rates[0] * factor,
                f"speed/{speed}": clock.rate(),
                **records,
            }
            if gradient.shows_losses:  # what memory was taken tells how large batches were
                numbers["speed/memory_gb"] = process_memory(self.device)
            self.tracker.scalars(self.step, numbers)
            clock.restart()

    def _clip(
        self, gradient: StepGradient, factor: float
    ) -> tuple[Mapping[str, Tensor], float, float, Proposal | None]:
        """Clipped gradients, loss and norm, of the parameters that have a part in the loss.

        Last their update, if compiled code has computed it.

        Raises:
            NonFiniteError: training cannot go on.
        """
        if self._unused is None:
            self._unused = frozenset(self.objective.unused_parameters())
        grads = {
            name: gradient.grads[name]
            for name in self.params
            if name in gradient.grads and name not in self._unused
        }
        found = None if self.proposed is None else self.proposed(grads, gradient.losses, factor)
        try:
            clipped, loss, norm = self.population.clip_and_check(
                grads,
                gradient.losses,
                step=self.step,
                suspects=gradient.suspects,
                known=None if found is None else (found.grads, found.read),
            )
        except Ending as ending:
            self._end(ending)
        return clipped, loss, norm, found if found and clipped is found.grads else None

    def _records(self, batch: Any, gradient: StepGradient) -> dict[str, float]:
        scalars = {name: float(value) for name, value in gradient.scalars.items()}
        return scalars | dict(self.objective.records(batch, gradient, step=self.step))

    def _end(self, ending: Ending) -> NoReturn:
        """Keep what there is to keep, and raise NonFiniteError."""
        path = self.save(f"non_finite_step_{self.step}") if ending.kept else None
        self.tracker.flush()
        raise NonFiniteError(ending.sentence(path)) from None

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.settings.steps
