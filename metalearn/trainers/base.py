"""The loop that every trainer shares: step, validate, log, save, resume, stop."""

from __future__ import annotations

import copy
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metalearn.checkpoint import load_checkpoint, save_checkpoint
from metalearn.core.checks import as_device
from metalearn.core.tree import is_finite
from metalearn.errors import DataError, NonFiniteError, SettingError
from metalearn.files import failures_named
from metalearn.models import set_draw
from metalearn.schema import Kind, Misfit, mapping, shown
from metalearn.signatures import checked
from metalearn.tracking import NullTracker, Progress, Tracker
from metalearn.trainers.diagnostics import (
    DiagnosisData,
    DiagnosticRunner,
    DiagnosticSource,
    GradientUnits,
    PredictiveModels,
)
from metalearn.trainers.loop.clock import Clock, process_memory
from metalearn.trainers.loop.outer_optimizer import OptimizerFactory, make_optimizer
from metalearn.trainers.loop.result import FitResult
from metalearn.trainers.loop.saved_state import check_module, check_state
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.loop.stop_signal import Stopped, StopRequest
from metalearn.trainers.report import Report
from metalearn.trainers.trainer import Trainer as AssembledTrainer
from metalearn.types import Split

__all__ = ["FitResult", "OptimizerFactory", "StepReport", "Trainer"]

log = logging.getLogger(__name__)

_IN_ITS_PLACE = "a copy of last.pt in its place makes the newest parameters the best so far"
_CHECKPOINT_VERSION = 1
_LONGEST = 300  # characters of torch's reasons that a sentence repeats


@dataclass(frozen=True)
class StepReport:
    """What a subclass says of one step's gradient."""

    loss: Tensor
    """Training loss, a scalar."""
    grads: Mapping[str, Tensor]
    """Gradient of each named parameter of the module that this step is to change."""
    samples: int
    """How many tasks (or samples) it took."""
    suspects: Callable[[], str]
    """Names the tasks or samples behind a non-finite value."""
    member_losses: Tensor | None = None
    """``[M]`` in a training of members."""


class Trainer(ABC):
    """The loop around a subclass's `gradient` and `validate`.

    Args:
        module: whose parameters are trained, in place.
        settings: length and cadence.
        optimizer: makes the outer optimiser from the parameters; Adam with rate 1e-3 by default.
        tracker: where numbers and figures go; nowhere by default.
        folder: of the run; ``checkpoints/last.pt`` and ``best.pt`` are kept in it. None saves
            nothing.
        device: where the module is moved.
    """

    monitor: str
    """Name of the validation number that decides what is best."""
    larger_is_better: bool
    unit: str = "samples"

    @checked
    def __init__(
        self,
        module: nn.Module,
        settings: LoopSettings,
        *,
        optimizer: OptimizerFactory | None = None,
        tracker: Tracker | None = None,
        folder: str | Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not any(parameter.requires_grad for parameter in module.parameters()):
            accepted = "a parameter to train is needed (requires_grad=True)"
            raise SettingError("model", type(module).__name__, accepted)
        device = as_device(device)
        self.module = module.to(device)
        self.settings = settings
        self.device = device
        self.tracker: Tracker = tracker or NullTracker()
        self.folder = None if folder is None else Path(folder)
        self.optimizer = make_optimizer(optimizer, self.module)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self.step = 0
        self.seconds = 0.0
        self.best_step, self.best_value = -1, math.nan
        self.endings: dict[int, str] = {}  # of members
        self._best: dict[str, Tensor] = {}
        self._stale = 0
        self._shown: dict[str, float] = {}
        self._unused: frozenset[str] | None = None
        self.validation_due = True
        self._unsaved, self._has_folder = True, False
        self._stop = StopRequest()  # of no signal, unless in `stoppable`
        self.diagnostics = DiagnosticRunner((), settings.diagnostics_every, self)

    @abstractmethod
    def gradient(self, step: int) -> StepReport:
        """Loss and gradients of training step ``step``, which must depend on nothing but it."""

    @abstractmethod
    def validate(self) -> Mapping[str, float]:
        """Validation numbers at the current parameters; ``monitor`` is one of them."""

    def prepare(self) -> None:
        """Decide what is decided once; `fit` calls it before the first validation.

        What a subclass decides here is part of `extra_state`, so the first checkpoint has it.
        """
        return

    def unused_parameters(self) -> Iterable[str]:
        """Names of parameters that have no part in the loss, which the optimiser is to skip.

        Asked once a run, at its first step; a subclass answers for its first batch, so that a
        resumed run has the same answer. (A parameter that single steps leave out has a gradient of
        zero in those.)
        """
        return ()

    @property
    def bands(self) -> dict[str, list[str]]:
        """Records with ends ``<name>_low`` and ``<name>_high``, by what the ends are."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """What a subclass keeps in a checkpoint beside the common state, plain or tensors."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take what `extra_state` gave."""
        return

    def extra_kinds(self) -> list[Kind]:
        """What `extra_state` has to be in a checkpoint; a subclass adds its own."""
        return [mapping({})]

    def rate(self, step: int) -> float:
        """Factor of the learning rate at a step counted from 0."""
        return self.settings.rate(step)

    def log_training(self, step: int, report: StepReport) -> Mapping[str, float]:
        """Further numbers of a step that is logged, before its update."""
        return {}

    def begin_diagnostics(self) -> None:
        """Set up ``settings.diagnostics``; called once by a subclass that is complete.

        Raises:
            SettingError: a diagnostic that this training has nothing for.
        """
        names, every = self.settings.diagnostics, self.settings.diagnostics_every
        self.diagnostics = DiagnosticRunner(names, every, self)

    def diagnostic_batch(self, step: int) -> Any:
        """The batch of a step, as `gradient_units` and `predictive_models` take it."""
        return None

    def diagnostic_kinds(self) -> Mapping[str, str]:
        """What diagnostics can see, and why not; see `DiagnosticSource` for these three."""
        return {}

    def gradient_units(self, kind: str, batch: Any, grads: Mapping[str, Tensor]) -> GradientUnits:
        """Gradients of units of a kind that there is, in a step's batch with these gradients."""
        raise SettingError("kind", kind, f"known are {', '.join(self.diagnostic_kinds())}")

    def predictive_models(self, batch: Any) -> Iterator[PredictiveModels]:
        """Models with the data of a step's batch."""
        return iter(())

    def diagnosis_sources(self, data: DiagnosisData) -> Iterator[tuple[str, DiagnosticSource]]:
        """What ``diagnose`` looks at, as the module stands, by name."""
        return iter(())

    def reports(
        self, split: Split = "test", *, tasks: int = 600, inductive: bool = True
    ) -> Mapping[str, Report]:
        """Scores of the module as it stands, by the name under which they are shown; none here.

        Args:
            split: that is scored.
            tasks: how many, where the training is on tasks.
            inductive: whether tasks are scored a second time, with each query alone beside the
                support set, where normalisation takes statistics of the whole query set.
        """
        return {}

    def member_settings(self) -> list[dict[str, float]]:
        """What differs between members, as rows for the comparison of runs; none here."""
        return []

    @property
    def finished(self) -> bool:
        """Whether `fit` has nothing left to do."""
        ended = self.step >= self.settings.steps or self.out_of_patience()
        return ended and not self.validation_due

    @contextmanager
    def stoppable(self) -> Iterator[StopRequest]:
        """Note signals that ask to stop; validation, tests and diagnostics then raise `Stopped`."""
        before = self._stop
        with StopRequest() as stop:
            stop.received, self._stop = before.received, stop
            try:
                yield stop
            finally:
                self._stop = before

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
        self.check_best()
        self._make_folder()
        started = time.monotonic() - self.seconds
        with (
            self.stoppable() as stop,
            Progress(self.settings.steps, self.step, enabled=self.settings.progress) as bar,
        ):
            with suppress(Stopped):  # what is broken off is done again by who resumes
                self._go_on(stop, bar, started)
            self.seconds = time.monotonic() - started
            if self._unsaved:
                self.save("last")
        reason: Literal["finished", "patience", "interrupted"] = "interrupted"
        if self.finished:
            reason = "finished" if self.step >= self.settings.steps else "patience"
        self.tracker.flush()
        if reason != "interrupted" and math.isnan(self.best_value):
            where = f"; the last state is in {self.folder / 'checkpoints'}" if self.folder else ""
            raise NonFiniteError(
                f"step {self.step}: {self.monitor} was NaN in every validation, so that no state "
                f"is known to be good{where}"
            )
        return FitResult(
            self.step,
            reason,
            self.best_step,
            self.best_value,
            self.monitor,
            self.seconds,
            stop.received,
        )

    def save(self, name: str) -> Path | None:
        """Write ``checkpoints/<name>.pt``: all that `resume` needs. None without a folder.

        Raises:
            OSError: what the system refuses; so is a folder that was taken away meanwhile.
        """
        if self.folder is None:
            return None
        self.check_parameters()
        self._make_folder()
        path = self.folder / "checkpoints" / f"{name}.pt"
        with failures_named(path):
            path.parent.mkdir(exist_ok=True)
        save_checkpoint(
            path,
            {
                "version": _CHECKPOINT_VERSION,
                "step": self.step,
                "module": self._best if name == "best" else self.module.state_dict(),
                "optimizer_class": type(self.optimizer).__name__,
                "optimizer": self.optimizer.state_dict(),
                "best_step": self.best_step,
                "best_value": self.best_value,
                "stale": self._stale,
                "validation_due": self.validation_due,
                "seconds": self.seconds,
                "extra": self.extra_state(),
                "diagnostics": self.diagnostics.state(),
            },
            make_folder=False,
        )
        if name == "last":
            self._unsaved = False
        return path

    @checked
    def resume(self, path: str | Path) -> None:
        """Go on from a checkpoint as if the run had never stopped.

        Raises:
            DataError: a file that is no checkpoint, or one of another module or optimiser.
        """
        state = load_checkpoint(Path(path), device=self.device)
        version, kind = state.get("version"), state.get("optimizer_class")
        if type(version) is not int or version != _CHECKPOINT_VERSION:
            raise DataError(f"{path}: checkpoint version {shown(version)} is not known here")
        optimizer = type(self.optimizer).__name__
        if not isinstance(kind, str) or kind != optimizer:
            named = shown(kind).strip("'")
            raise DataError(f"{path}: this checkpoint is of the optimiser {named}, not {optimizer}")
        try:
            mapping({})(state.get("extra", {}), "extra")
            known = mapping({"diagnostics": self.diagnostics.state_kind()})
            kinds = [*self.extra_kinds(), lambda value, where: known(value, "")]
            diagnostics = state.get("diagnostics", {})
            check_state(
                state,
                module=self.module,
                optimizer=self.optimizer,
                parts={**state.get("extra", {}), "diagnostics": diagnostics},
                kinds=kinds,
            )
            self.module.load_state_dict(state["module"])
            options = [{**group} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(state["optimizer"])
            for group, option in zip(self.optimizer.param_groups, options):
                group.update({k: v for k, v in option.items() if k != "params"})
            self.step, self.seconds = state["step"], state["seconds"]
            self.best_step, self.best_value = state["best_step"], state["best_value"]
            self._stale = state["stale"]
            self.validation_due = state.get("validation_due", self.best_step < 0)
            self.load_extra_state(state.get("extra", {}))
            self.diagnostics.load_state(state.get("diagnostics", {}))
            if self.step:
                self._set_rates(self.step - 1)  # as they were saved
        except (KeyError, RuntimeError, ValueError) as error:
            raise _unfit(path, error) from error
        lost = self.not_finite()
        if lost:
            raise DataError(f"{path}: {lost} of this checkpoint has weights that are not finite")
        best = Path(path).with_name("best.pt")
        self._best = self._best_of(best) if best.is_file() else {}
        last = None if self.folder is None else self.folder / "checkpoints" / "last.pt"
        self._unsaved = last is None or last.resolve() != Path(path).resolve()

    def check_best(self) -> None:
        """Refuse to go on where the best parameters so far are not known.

        Raises:
            DataError: ``best.pt`` was not beside the resumed checkpoint.
        """
        if self.best_step < 0:
            return
        where = "best.pt" if self.folder is None else self.folder / "checkpoints" / "best.pt"
        if not self._best:
            raise DataError(
                f"{where}: the best checkpoint is missing, so the best parameters are not known; "
                f"{_IN_ITS_PLACE}"
            )

    def not_finite(self) -> str:
        """What of the module has parameters that are not finite, in words; empty where nothing."""
        return "" if is_finite(dict(self.module.named_parameters())) else "the module"

    def _best_of(self, path: Path) -> dict[str, Tensor]:
        """The module's state in the best checkpoint."""
        state = load_checkpoint(path, device=self.device)
        try:
            check_module(self.module, state)
        except Misfit as error:
            raise DataError(f"{_unfit(path, error)}; {_IN_ITS_PLACE}") from error
        found: dict[str, Tensor] = state["module"]
        return found

    def load_best(self) -> None:
        """Put the parameters of the best validation into the module.

        Raises:
            DataError: none are known; see `check_best`.
        """
        self.check_best()
        if not self._best:
            raise DataError("there has been no validation, so the best parameters are not known")
        self.module.load_state_dict(self._best)

    def _go_on(self, stop: StopRequest, bar: Progress, started: float) -> None:
        """All that is left to do; ``started`` is the time at which the run would have begun."""
        total = self.settings.steps
        if not self.finished:
            self.prepare()
        if self.validation_due:
            if self.best_step < 0:
                self.save("last")  # however long the validation takes, what is decided is kept
            self._evaluate()
            self.save("last")
        clock = Clock()
        self.diagnostics.restart()
        while self.step < total and not self.out_of_patience() and stop.received is None:
            self._train_step(bar, clock)
            self.seconds = time.monotonic() - started
            if self._due(self.settings.eval_every):
                self.validation_due = True
                with clock.paused():
                    self._evaluate()
            if self._due(self.settings.checkpoint_every):
                self.save("last")

    def _train_step(self, bar: Progress, clock: Clock) -> None:
        step = self.step
        watched = self.diagnostics.due(step)
        kept = [b.clone() for b in self.module.buffers()] if watched else []
        set_draw(self.module, step)
        report = self.gradient(step)
        if self._unused is None:
            self._unused = frozenset(self.unused_parameters())
        for name, parameter in self.module.named_parameters():
            grad = report.grads.get(name)  # none of a stack that is not trained any more
            if grad is not None and name not in self._unused:
                parameter.grad = _laid_out_like(grad, parameter)
            else:
                parameter.grad = None
        if watched:
            with clock.paused():
                self._look(step, report, kept)
        loss, norm = self.accept(step, report)
        due = (step + 1) % self.settings.log_every == 0 or step == 0
        with clock.paused():
            extra = dict(self.log_training(step, report)) if due else {}
        factor = self._set_rates(step)
        with self._stop.whole():
            self.update(factor)
            self.step += 1
            self._unsaved = True
        clock.count(report.samples)
        if "train/accuracy_after" in extra:
            self._shown = {"accuracy": extra["train/accuracy_after"]}  # until the next record
        bar.update(1, **{"loss": loss, **self._shown, f"{self.unit}_per_s": clock.rate()})
        if due:
            numbers = {
                "train/loss": loss,
                "train/gradient_norm": norm,
                "train/learning_rate": self._rates[0] * factor,
                f"speed/{self.unit}_per_s": clock.rate(),
                "speed/memory_gb": process_memory(self.device),
                **extra,
            }
            self.tracker.scalars(self.step, numbers)
            clock.restart()

    def _set_rates(self, step: int) -> float:
        """Set the learning rates of a step; the factor of the schedule."""
        factor = self.rate(step)
        for group, rate in zip(self.optimizer.param_groups, self._rates):
            group["lr"] = rate * factor
        return factor

    def _look(self, step: int, report: StepReport, kept: list[Tensor]) -> None:
        """Diagnostics; broken off, they leave buffers as they were before the step."""
        try:
            batch, check = self.diagnostic_batch(step), self._stop.check
            self.diagnostics.run(step, batch, report.grads, self.tracker, check=check)
        except Stopped:
            for buffer, value in zip(self.module.buffers(), kept):
                buffer.copy_(value)
            raise

    def accept(self, step: int, report: StepReport) -> tuple[float, float]:
        """Clip the gradient; loss and norm before clipping.

        Raises:
            NonFiniteError: one of them is not finite; the state before the step has been saved.
        """
        limit = math.inf if self.settings.clip is None else self.settings.clip
        values = [p for n, p in self.module.named_parameters() if n in report.grads]
        norm = float(torch.nn.utils.clip_grad_norm_(values, limit))
        loss = float(report.loss)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.refuse_non_finite(step, f"loss {loss:g} and gradient norm {norm:g}", report)
        return loss, norm

    def update(self, factor: float) -> None:
        """Take the outer step; ``factor`` is that of the schedule, learning rates are set."""
        self.optimizer.step()

    def refuse_non_finite(self, step: int, what: str, report: StepReport) -> None:
        """Save the state before the step and raise NonFiniteError."""
        path = self.save(f"non_finite_step_{step}")
        self.tracker.flush()
        where = f"; the state before the step is in {path}" if path else ""
        raise NonFiniteError(
            f"step {step}: {what} are not both finite, from "
            f"{report.suspects()}{where}; a lower inner or outer learning rate may help"
        )

    def check_parameters(self) -> None:
        """Refuse parameters that are not finite."""
        if not is_finite(dict(self.module.named_parameters())):
            raise NonFiniteError(
                f"step {self.step}: the outer update made parameters that are not finite; "
                "a lower outer learning rate may help"
            )

    def _evaluate(self) -> None:
        self.check_parameters()
        numbers = dict(self.validate())
        with self._stop.whole():
            self.tracker.scalars(self.step, numbers)
            self.tracker.histograms(self.step, "weights", dict(self.module.named_parameters()))
            grads = {n: p.grad for n, p in self.module.named_parameters() if p.grad is not None}
            self.tracker.histograms(self.step, "weights_gradient", grads)
            self.diagnostics.draw(self.step, self.tracker)
            better = self.judge(numbers)
            self.validation_due, self._unsaved = False, True
            if better:
                self.save("best")
        log.info(
            "step %d/%d: %s %.4g (best %.4g at step %d)",
            self.step,
            self.settings.steps,
            self.monitor,
            numbers[self.monitor],
            self.best_value,
            self.best_step,
        )
        lost = self.nan_validation(numbers)
        if lost:
            log.warning("step %d: %s is NaN in validation and cannot be the best", self.step, lost)

    def nan_validation(self, numbers: Mapping[str, float]) -> str:
        """What of a validation is NaN, in words; empty where nothing is."""
        return self.monitor if math.isnan(numbers[self.monitor]) else ""

    def judge(self, numbers: Mapping[str, float]) -> bool:
        """Take note of a validation; whether the best state has changed."""
        value = numbers[self.monitor]
        better = value > self.best_value if self.larger_is_better else value < self.best_value
        better = better or (math.isnan(self.best_value) and not math.isnan(value))
        if not (self.best_step < 0 or better):  # the first is kept even if it is NaN
            self._stale += 1
            return False
        self.best_step, self.best_value, self._stale = self.step, value, 0
        self._best = copy.deepcopy(self.module.state_dict())
        return True

    def out_of_patience(self) -> bool:
        """Whether validations have brought nothing for too long."""
        return self.settings.patience is not None and self._stale >= self.settings.patience

    def _make_folder(self) -> None:
        """Once: a folder that is taken away later is not made again without all that was in it."""
        if self.folder is not None and not self._has_folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._has_folder = True

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.settings.steps


def _unfit(path: str | Path, error: Exception) -> DataError:
    """A checkpoint that does not fit the run."""
    reason = " ".join(str(error).split())[:_LONGEST]
    return DataError(f"{path}: this checkpoint does not fit the run ({reason})")


def _laid_out_like(grad: Tensor, parameter: Tensor) -> Tensor:
    """The same gradient with the strides of its parameter.

    Fused optimisers on a CPU pair elements by their place in memory (torch 2.14): with other
    strides they would step along a shuffled gradient without an error.
    """
    if grad.stride() == parameter.stride():
        return grad
    return torch.empty_like(parameter).copy_(grad)


Trainer.register(AssembledTrainer)  # until no trainer is left that inherits from this one
