"""Learners of which the network reads the support set itself: one forward pass, no inner loop.

Axes: T tasks, N support samples, B queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from torch import Tensor

from metalearn.core.checks import check_pair
from metalearn.errors import SettingError
from metalearn.trainers.meta.protocol import Learner
from metalearn.types import Batch, Params

__all__ = ["Conditioned", "ConditionedLearner"]


class Conditioned(NamedTuple):
    """Parameters of a network, and the support set that it reads."""

    params: Params
    inputs: Tensor
    targets: Tensor
    outputs: int | None = None
    """How many outputs of the network count; None takes all."""


class ConditionedLearner(Learner):
    """A `Learner` whose module is called as ``module(queries, inputs, targets)``, K = 0.

    Without the last two, the support set, the module gives what `Learner.needs` says.
    """

    name: ClassVar[str]
    """What the method is called in sentences."""

    def fit(
        self, params: Params, support: Batch, *, steps: int | None = None
    ) -> Iterator[Conditioned]:
        """One state: the support set."""
        self.count_steps(steps)
        inputs, targets = check_pair(support, "support")
        yield Conditioned(params, inputs, targets, self.outputs_for(targets))

    def outputs_for(self, targets: Tensor) -> int | None:
        """How many outputs of the network count in a task; None takes all."""
        return None

    def predict(self, state: Conditioned, inputs: Tensor) -> Tensor:
        """Outputs ``[B, ...]`` of queries ``[B, ...]``."""
        given = inputs, state.inputs, state.targets
        outputs: Tensor = self.apply(state.params, self.buffers, *given)
        return outputs if state.outputs is None else outputs[..., : state.outputs]

    def count_steps(self, steps: int | None) -> int:
        """0.

        Raises:
            SettingError: a number of inner steps that is not 0.
        """
        if steps:
            raise SettingError("steps", steps, f"{self.name} has no inner loop, so 0 is needed")
        return super().count_steps(steps)
