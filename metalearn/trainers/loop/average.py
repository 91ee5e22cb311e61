"""The exponential average of a training's weights, which is scored in their place.

Axes: M members, or 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from metalearn.core.precision import widened
from metalearn.schema import Kind, like, mapping, whole
from metalearn.trainers.loop.protocols import Callback, Training
from metalearn.trainers.members.population import Population
from metalearn.trainers.members.trained import trained_state

__all__ = ["WeightAverage"]


class WeightAverage(Callback):
    """After the t-th step, counted from 0, θ̄ ← d·θ̄ + (1 − d)·θ, d = min(decay, (1 + t)/(10 + t)).

    θ̄ starts as θ. The second term of d is the warm-up of TensorFlow's moving averages: an average
    of few steps forgets where it started. All floating-point entries of the module's state are
    averaged, running statistics of norms too, and those of what is learnt beside it; others, such
    as counters, are those of now. Types narrower than float32 are averaged in float32.

    A member that is not trained any more keeps its average; of one that diverged, and was put back
    to its best state, that state is the average.

    Args:
        population: of the module's networks.
        decay: in (0, 1); about 1/(1 − decay) steps are averaged.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM
    Journal on Control and Optimization, 1992; exponential in Kingma and Ba, "Adam: A Method for
    Stochastic Optimization", ICLR 2015, section 7.2.
    """

    def __init__(self, population: Population, decay: float) -> None:
        self._population, self.decay = population, decay
        self.restart()

    def restart(self) -> None:
        """Begin anew, with the weights as they stand."""
        self.updates = 0
        self.values = {name: value.clone() for name, value in self._widened().items()}

    def member_rows(self) -> dict[str, Tensor]:
        """The average."""
        return self.values

    def begin(self, loop: Training) -> None:
        """Start as the weights stand, which may have been changed since the loop was made."""
        if not self.updates:
            self.restart()

    def after_update(self, loop: Training) -> None:
        """Take the weights of a step into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        active, now = self._population.active, self._widened()
        if bool(active.all()):
            _approach(self.values, now, 1 - decay)
            return
        moved = {name: value.clone() for name, value in self.values.items()}
        _approach(moved, now, 1 - decay)
        self._population.rows.copy(moved, self.values, active)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A block in which the module, and what is learnt beside it, hold the average."""
        if not self.updates:
            self.restart()
        now = self._now()
        self._population.rows.copy(self._widened(), self.values, self._population.diverged)
        kept = {name: value.clone() for name, value in now.items()}
        try:
            _write(self.values, now)
            yield
        finally:
            _write(kept, now)

    def state(self) -> dict[str, Any]:
        """The average, and how many steps it has seen."""
        return {"average": self.values, "average_updates": self.updates}

    def state_kinds(self) -> list[Kind]:
        """The same; a training that had no average has none of it."""
        return [mapping({}, {"average": like(self.values), "average_updates": whole()})]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave; begin anew after a training that had no average."""
        self.restart()
        if "average" in state and "average_updates" in state:
            self.updates = state["average_updates"]
            _write(state["average"], self.values)

    def _now(self) -> dict[str, Tensor]:
        """The tensors of what is trained, which share its storage."""
        state = trained_state(self._population.module, self._population.beside)
        return {name: v.detach() for name, v in state.items() if isinstance(v, Tensor)}

    def _widened(self) -> dict[str, Tensor]:
        return {name: widened(value) for name, value in self._now().items()}


def _approach(values: Mapping[str, Tensor], now: Mapping[str, Tensor], share: float) -> None:
    """Move floating-point values by a share of the way to what they are now, others all of it."""
    for name, value in now.items():
        if value.is_floating_point():
            values[name].lerp_(value, share)
        else:
            values[name].copy_(value)


def _write(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in source.items():
        target[name].copy_(value)
