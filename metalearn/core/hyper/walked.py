"""The gradient by the walk back from θ_K: interrupted and gone on with where it is asked for.

Axes: K steps, R outer losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from metalearn.core.autodiff.backend import Values
from metalearn.core.hyper.results import HyperGradient, HyperProgress, RunEnd, result_of
from metalearn.core.hyper.resumed import check_identity, check_same_loss, identity_of
from metalearn.core.hyper.run import Run
from metalearn.core.hyper.unrolled import outer_gradient
from metalearn.core.memory import parse_bytes
from metalearn.core.meta.backward_walk import BackwardWalk, State
from metalearn.core.meta.step_series import StepSeries
from metalearn.core.tree import leaves
from metalearn.errors import SettingError

__all__ = ["WalkedRun", "state_bytes", "states_kept"]

Phase = Literal["forward", "back"]
_CARRIED = ("position", "cotangent", "state_cotangent", "learnt")


@dataclass
class WalkedRun:
    """A run forward, and back over its last steps.

    Attributes:
        run: K steps.
        states: how many states are kept at once.
        back_to: k, where the way back ends.
        first_order: whether inner gradients are constants, and gradients of leaves those at θ_K.
        kept: where states are kept; None keeps them in memory, and in snapshots.
        progress: told of every state forward, and of every step back.
    """

    run: Run
    states: int
    back_to: int = 0
    first_order: bool = False
    kept: MutableMapping[int, State] | None = None
    progress: Callable[[HyperProgress], None] | None = None

    def __post_init__(self) -> None:
        self.way = BackwardWalk(self.run.loop, self.run.batches, self.run.steps, self.states)
        self.way.constant_slopes = self.first_order
        if self.kept is not None:
            self.way.kept = self.kept
        self.losses, self.norms = StepSeries(), StepSeries()

    def gradient(self, resume: Mapping[str, Any] | None = None) -> HyperGradient:
        """From the start, or from where a snapshot was taken.

        Raises:
            SettingError: a snapshot of another gradient.
        """
        way, run = self.way, self.run
        if resume is not None:
            check_identity(resume.get("identity", {}), self._told_apart())
            self._check_inner(resume)
        elif way.kept:
            raise SettingError("kept", f"{len(way.kept)} states", "an empty mapping is needed")
        if resume is None or resume["phase"] == "forward":
            end, grads = self._forward(resume)
        else:
            end, grads = self._taken_up(resume)
        while way.position > self.back_to:
            way.back()
            self.norms.append(self._norm())
            self._tell("back", way.position, lambda: self._snapshot_back(end, grads))
        if not self.first_order:
            grads = way.cotangent
        diagnostics = {"walk_norms": self.norms.stacked()}
        return result_of(run, grads, way.learnt_grads(), end, diagnostics)

    def _forward(self, resume: Mapping[str, Any] | None) -> tuple[RunEnd, Values]:
        """To θ_K, and the gradient there."""
        run, way = self.run, self.way
        values, state, at = run.start, run.state, 0
        if resume is not None:
            values, state, at = resume["values"], resume["state"], resume["position"]
            self.losses = StepSeries(resume["losses"])
            way.kept.update(resume["kept"])

        def after(k: int, here: State) -> None:
            self._tell("forward", k, lambda: self._snapshot_forward(k, here))

        values, state = way.forward(values, state, at=at, losses=self.losses, after=after)
        loss, grads = outer_gradient(run, values)
        way.many = bool(loss.dim())
        way.begin(grads, state)
        self.norms.append(self._norm())
        return RunEnd(values, state, loss, self.losses.stacked()), grads

    def _taken_up(self, resume: Mapping[str, Any]) -> tuple[RunEnd, Values]:
        """The end of the run and the gradient there; the way back stands where it stood."""
        way, end = self.way, RunEnd(*resume["end"])
        own = self.run.outer(end.values)
        check_same_loss("outer_loss", "outer_batch", end.loss, own)
        way.many = bool(end.loss.dim())
        for name in _CARRIED:
            setattr(way, name, resume[name])
        way.kept.update(resume["kept"])
        if way.position > self.back_to and 0 not in way.kept:
            accepted = "the mapping that the gradient kept its states in, as it was left, is needed"
            raise SettingError("kept", "no state of step 0", accepted)
        self.norms = StepSeries(resume["norms"])
        return end, list(resume["grads"])

    def _snapshot_forward(self, k: int, here: State) -> dict[str, Any]:
        values, state = here
        stands = {"phase": "forward", "position": k, "values": list(values), "state": state}
        kept = {"losses": self.losses.parts(), "kept": self._own_states()}
        return {"identity": self._told_apart(), **stands, **kept}

    def _snapshot_back(self, end: RunEnd, grads: Values) -> dict[str, Any]:
        carried = {name: getattr(self.way, name) for name in _CARRIED}
        stands = {"phase": "back", "end": tuple(end), "grads": grads if self.first_order else []}
        kept = {"norms": self.norms.parts(), "kept": self._own_states()}
        return {"identity": self._told_apart(), **stands, **carried, **kept}

    def _told_apart(self) -> dict[str, Any]:
        """What has to be the same where a gradient goes on."""
        how = {"states": self.states, "back_to": self.back_to, "first_order": self.first_order}
        return identity_of(self.run) | how

    def _check_inner(self, resume: Mapping[str, Any]) -> None:
        """Refuse to go on along the steps of another inner loss."""
        parts = [RunEnd(*resume["end"]).losses] if "end" in resume else resume["losses"]
        if parts:
            with torch.no_grad():
                own = self.run.loop.loss(list(self.run.start), self.run.batches.at(0))
            check_same_loss("inner_loss", "inner_batches", parts[0][0], own)

    def _own_states(self) -> dict[int, State]:
        return dict(self.way.kept) if self.kept is None else {}

    def _norm(self) -> Tensor:
        """‖·‖ of the cotangents of leaves that move, of each outer loss."""
        moving = self.run.loop.adapting(self.way.cotangent)
        lead = moving[0].shape[: int(self.way.many)]
        squares = [(c * c).reshape(*lead, -1).sum(-1) for c in moving]
        return torch.stack(squares).sum(0).sqrt()

    def _tell(self, phase: Phase, step: int, snapshot: Callable[[], dict[str, Any]]) -> None:
        if self.progress is not None:
            self.progress(HyperProgress(phase, step, self.run.steps, snapshot))


def states_kept(run: Run, memory: str | int | None) -> int:
    """How many states are kept at once.

    Raises:
        SettingError: ``memory`` has no room for one.
    """
    if memory is None:
        return math.ceil(math.sqrt(2 * run.steps))
    size = state_bytes(run)
    fits = parse_bytes(memory) // max(size, 1)
    if not fits:
        accepted = f"at least {size} bytes, those of one state, are needed"
        raise SettingError("memory", memory, accepted)
    return min(run.steps, fits)


def state_bytes(run: Run) -> int:
    """Bytes of what moves, and of the optimiser's state."""
    tensors = [v for v in leaves(run.state) if isinstance(v, Tensor)]
    return sum(v.numel() * v.element_size() for v in [*run.loop.adapting(run.start), *tensors])
