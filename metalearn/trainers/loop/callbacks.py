"""Diagnostics as a callback of the loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from metalearn.schema import Kind, mapping
from metalearn.trainers.diagnostics import DiagnosticRunner
from metalearn.trainers.loop.protocols import Callback, Evaluation, Training
from metalearn.trainers.loop.stop_signal import Stopped

__all__ = ["Diagnostics"]


class Diagnostics(Callback):
    """Lets a training's diagnostics look at its gradients.

    Args:
        runner: the diagnostics.
    """

    def __init__(self, runner: DiagnosticRunner) -> None:
        self.runner = runner
        self._buffers: list[Tensor] = []

    def begin(self, loop: Training) -> None:
        """Shares of time are counted from here."""
        self.runner.restart()

    def looks_at(self, step: int) -> bool:
        """At those at which a diagnostic is due."""
        return self.runner.due(step)

    def before_step(self, loop: Training, step: int) -> None:
        """Remember the buffers that the gradient of a step that is looked at may write."""
        due = self.runner.due(step)
        self._buffers = [buffer.clone() for buffer in loop.module.buffers()] if due else []

    def after_gradient(self, loop: Training, batch: Any, grads: Mapping[str, Tensor]) -> None:
        """Look; broken off, it leaves buffers as they were before the step."""
        if not self.runner.due(loop.step):
            return
        try:
            self.runner.run(loop.step, batch, grads, loop.tracker, check=loop.stop.check)
        except Stopped:
            for buffer, value in zip(loop.module.buffers(), self._buffers):
                buffer.copy_(value)
            raise

    def after_validation(self, loop: Training, evaluation: Evaluation) -> None:
        """Draw what is known so far."""
        self.runner.draw(loop.step, loop.tracker)

    def state(self) -> dict[str, Any]:
        """What diagnostics remember."""
        return {"diagnostics": self.runner.state()}

    def state_kinds(self) -> list[Kind]:
        """As far as a checkpoint has these diagnostics."""
        kind = mapping({"diagnostics": self.runner.state_kind()})
        return [lambda value, where: kind(value, "")]  # a checkpoint has them beside the rest

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave; a diagnostic that is new starts from nothing."""
        self.runner.load_state(state["diagnostics"])
