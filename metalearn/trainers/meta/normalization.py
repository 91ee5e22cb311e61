"""How a learner's network normalises: said beside scores, and moved by training.

Axes: T tasks, N samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from metalearn.core.module.norms import moved_statistics, normalization_of
from metalearn.core.tree import tree_map
from metalearn.trainers.meta.inductive import answers_depend
from metalearn.trainers.meta.method_checks import CheckedLearner, predicted, states_of
from metalearn.types import Params, TaskBatch

__all__ = ["Normalization", "common_normalization", "moved_by_tasks", "normalization_in"]


class NormalizedLearner(CheckedLearner, Protocol):
    """What is asked of a learner here."""

    module: nn.Module
    apply: Any
    buffers: Any

    def count_steps(self, steps: int | None) -> int:
        """K."""


@dataclass(frozen=True)
class Normalization:
    """What scores were normalised with."""

    name: str
    """See `metalearn.core.module.norms.normalization_of`; ``"none"`` without such layers."""
    shared: bool
    """Whether the answer to a query depends on the other queries of its task."""

    def __str__(self) -> str:
        if self.name == "none" and not self.shared:
            return "none"
        whose = "a task's queries share statistics" if self.shared else "queries share nothing"
        return f"{self.name}; {whose}"


def normalization_in(
    learner: NormalizedLearner, tasks: TaskBatch, *, inductive: bool
) -> Normalization:
    """How scores are normalised.

    One query of the first task is predicted beside the other queries and beside copies of itself.

    Args:
        learner: that is scored.
        tasks: one is enough.
        inductive: whether each query is predicted alone, beside the support set.
    """
    name = normalization_of(learner.module)
    if inductive:
        return Normalization(name, False)
    support, (queries, _) = tree_map(lambda value: value[0], tasks)
    if not isinstance(queries, Tensor):
        return Normalization(name, False)
    row, count = learner.network.rows()[0], learner.count_steps(None)
    with torch.no_grad():
        state = deque(states_of(learner, row, support, count), maxlen=1).pop()
        return Normalization(
            name, answers_depend(lambda inputs: predicted(learner, state, inputs), queries)
        )


def common_normalization(
    learners: Sequence[NormalizedLearner], tasks: TaskBatch, *, inductive: bool
) -> Normalization | None:
    """How the scores of several learners are normalised; None where they differ in that."""
    first, *others = (normalization_in(one, tasks, inductive=inductive) for one in learners)
    return first if all(other == first for other in others) else None


def moved_by_tasks(
    learner: NormalizedLearner, params: Params, tasks: TaskBatch
) -> dict[str, Tensor]:
    """New values of buffers of a learner's network after a training step, by name.

    Running statistics move towards the moments of all support and query inputs of the step's tasks
    together, padding among them, in one pass. Empty for a network without `RunningNorm`.

    Args:
        learner: that is trained.
        params: before the step.
        tasks: of the step.
    """

    def together(support: Any, query: Any) -> Any:
        return torch.cat([support.flatten(0, 1), query.flatten(0, 1)])

    def call() -> Any:
        inputs = tree_map(together, tasks.support[0], tasks.query[0])
        return learner.apply(params, learner.buffers, inputs)

    return moved_statistics(learner.module, call)
