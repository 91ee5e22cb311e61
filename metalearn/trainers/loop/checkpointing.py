"""What a loop keeps on disk: the newest state and the best, and how it goes on from them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from metalearn.checkpoint import load_checkpoint, save_checkpoint
from metalearn.errors import DataError
from metalearn.files import failures_named
from metalearn.schema import Misfit, mapping, shown
from metalearn.trainers.loop.clock import Spent
from metalearn.trainers.loop.protocols import Training
from metalearn.trainers.loop.saved_state import check_module, check_state
from metalearn.trainers.members.trained import LEARNT, divided, load_trained, trained_state

__all__ = ["Checkpoints"]

_VERSION = 1
_IN_ITS_PLACE = "a copy of last.pt in its place makes the newest parameters the best so far"
_LONGEST = 300  # characters of torch's reasons that a sentence repeats
_LEARNT = "learnt"  # values beside the module
_DIAGNOSTICS = "diagnostics"  # stands beside the other parts' state in a checkpoint


class Checkpoints:
    """The checkpoints of a loop.

    Args:
        loop: whose state they hold.
        folder: of the run; None keeps nothing.

    Attributes:
        unsaved: whether ``last.pt`` is not the state of now.
    """

    def __init__(self, loop: Training, folder: Path | None) -> None:
        self.loop, self.folder = loop, folder
        self.unsaved, self._has_folder = True, False

    def write(self, name: str) -> Path:
        """Write ``checkpoints/<name>.pt`` whole or not at all.

        Raises:
            OSError: what the system refuses; so is a folder that was taken away meanwhile.
        """
        assert self.folder is not None
        self.make_folder()
        path = self.folder / "checkpoints" / f"{name}.pt"
        with failures_named(path):
            path.parent.mkdir(exist_ok=True)
        save_checkpoint(path, self._state(best=name == "best"), make_folder=False)
        if name == "last":
            self.unsaved = False
        return path

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint as if the run had never stopped.

        Raises:
            DataError: a file that is no checkpoint, or one of another module or optimiser.
        """
        loop = self.loop
        state = load_checkpoint(path, device=loop.device)
        self._check_origin(path, state)
        try:
            parts = parts_of(state)
            check_state(
                state,
                module=loop.module,
                beside=loop.beside,
                optimizer=loop.update.optimizer,
                parts=parts,
                kinds=[kind for part in self._parts() for kind in part.state_kinds()],
            )
            self._load(state, parts)
        except (KeyError, RuntimeError, ValueError) as error:
            raise _unfit(path, error) from error
        lost = loop.population.unknown_weights()
        if lost:
            raise DataError(f"{path}: {lost} of this checkpoint has weights that are not finite")
        best = path.with_name("best.pt")
        loop.population.best = self._best_of(best) if best.is_file() else {}
        last = None if self.folder is None else self.folder / "checkpoints" / "last.pt"
        self.unsaved = last is None or last.resolve() != path.resolve()

    def check_best(self) -> None:
        """Refuse to go on where the best parameters so far are not known.

        Raises:
            DataError: ``best.pt`` was not beside the resumed checkpoint.
        """
        if self.loop.population.best_step < 0:
            return
        where = "best.pt" if self.folder is None else self.folder / "checkpoints" / "best.pt"
        if not self.loop.population.best:
            raise DataError(
                f"{where}: the best checkpoint is missing, so the best parameters are not known; "
                f"{_IN_ITS_PLACE}"
            )

    def load_best(self) -> None:
        """Put the parameters of the best validation into the module.

        Raises:
            DataError: none are known; see `check_best`.
        """
        self.check_best()
        best = self.loop.population.best
        if not best:
            raise DataError("there has been no validation, so the best parameters are not known")
        load_trained(self.loop.module, self.loop.beside, best)
        if self.loop.average is not None:
            self.loop.average.restart()

    def make_folder(self) -> None:
        """Once: a folder that is taken away later is not made again without all that was in it."""
        if self.folder is not None and not self._has_folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._has_folder = True

    def _parts(self) -> tuple[Any, ...]:
        """What has a state beside module and optimiser."""
        loop = self.loop
        return (loop.population, loop.objective, loop.evaluator, *loop.callbacks)

    def _state(self, *, best: bool) -> dict[str, Any]:
        loop = self.loop
        parts: dict[str, Any] = {}
        for part in self._parts():
            parts |= part.state()
        state = loop.population.best if best else trained_state(loop.module, loop.beside)
        module, learnt = divided(state, loop.beside)
        return {
            "version": _VERSION,
            "step": loop.step,
            "module": module,
            **({_LEARNT: learnt} if learnt else {}),
            "optimizer_class": type(loop.update.optimizer).__name__,
            "optimizer": loop.update.optimizer.state_dict(),
            **loop.population.summary(),
            "validation_due": loop.validation_due,
            **asdict(loop.spent),
            _DIAGNOSTICS: parts.pop(_DIAGNOSTICS, {}),
            "extra": parts,
        }

    def _check_origin(self, path: Path, state: Mapping[str, Any]) -> None:
        version, kind = state.get("version"), state.get("optimizer_class")
        if type(version) is not int or version != _VERSION:
            raise DataError(f"{path}: checkpoint version {shown(version)} is not known here")
        _check_learnt(path, state, self.loop.beside)
        optimizer = type(self.loop.update.optimizer).__name__
        if not isinstance(kind, str) or kind != optimizer:
            named = shown(kind).strip("'")
            raise DataError(f"{path}: this checkpoint is of the optimiser {named}, not {optimizer}")

    def _load(self, state: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
        loop, optimizer = self.loop, self.loop.update.optimizer
        load_trained(loop.module, loop.beside, _joined(state))
        options = [{**group} for group in optimizer.param_groups]
        optimizer.load_state_dict(state["optimizer"])
        for group, option in zip(optimizer.param_groups, options):
            group.update({k: v for k, v in option.items() if k != "params"})
        loop.step = state["step"]
        loop.spent = Spent(state["seconds"], state.get("cpu_seconds", math.nan))
        loop.population.load_summary(state["best_step"], state["best_value"], state["stale"])
        loop.validation_due = state.get("validation_due", state["best_step"] < 0)
        for part in self._parts():
            part.load_state(parts)
        if loop.step:
            loop.set_rates(loop.step - 1)  # as they were saved

    def _best_of(self, path: Path) -> dict[str, Tensor]:
        """What is trained, in the best checkpoint."""
        state = load_checkpoint(path, device=self.loop.device)
        _check_learnt(path, state, self.loop.beside)
        try:
            check_module(self.loop.module, state, self.loop.beside)
        except Misfit as error:
            raise DataError(f"{_unfit(path, error)}; {_IN_ITS_PLACE}") from error
        best, own = _joined(state), trained_state(self.loop.module, self.loop.beside)
        for name, value in best.items():
            if isinstance(value, Tensor):  # in the type that members are copied into it from
                best[name] = value.to(own[name].dtype)
        return best


def _joined(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a checkpoint holds of the module, and of what is learnt beside it."""
    found: dict[str, Tensor] = copy.copy(state["module"])  # with the versions of its layers
    found.update({f"{LEARNT}{name}": value for name, value in state.get(_LEARNT, {}).items()})
    return found


def _check_learnt(path: Path, state: Mapping[str, Any], beside: nn.Module | None) -> None:
    """Refuse a checkpoint with values beside the module where the run has none, or without."""
    if (_LEARNT in state) != (beside is not None):
        own, run = ("none", "some") if beside is not None else ("some", "none")
        reason = f"it has {own} of what is learnt beside the weights, and the run has {run}"
        raise DataError(f"{path}: this checkpoint does not fit the run ({reason})")


def parts_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """What the parts of a loop kept in a checkpoint, under one roof, and the step they were at."""
    extra = state.get("extra", {})
    mapping({})(extra, "extra")
    return {**extra, "step": state.get("step"), _DIAGNOSTICS: state.get(_DIAGNOSTICS, {})}


def _unfit(path: str | Path, error: Exception) -> DataError:
    """A checkpoint that does not fit the run."""
    reason = " ".join(str(error).split())[:_LONGEST]
    return DataError(f"{path}: this checkpoint does not fit the run ({reason})")
