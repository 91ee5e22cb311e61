"""How a learner's network normalises: said beside scores, and moved by training.

Axes: T tasks, N samples.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.core.module.norms import moved_statistics, normalization_of
from metalearn.core.tree import tree_map
from metalearn.trainers.diagnostics import batch_dependence
from metalearn.trainers.meta.inductive import answers_depend
from metalearn.trainers.meta.method_checks import predicted, states_of
from metalearn.trainers.meta.protocol import Learner
from metalearn.types import TaskBatch

__all__ = ["Normalization", "moved_by_tasks", "normalization_in"]


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


def normalization_in(learner: Learner, tasks: TaskBatch, *, inductive: bool) -> Normalization:
    """How scores are normalised.

    Layers with statistics of the batch are known; of others, one query of the first task is
    predicted beside the other queries and beside copies of itself.

    Args:
        learner: that is scored.
        tasks: one is enough.
        inductive: whether each query is predicted alone, beside the support set.
    """
    name = normalization_of(learner.module)
    if inductive or batch_dependence(learner.module):
        return Normalization(name, not inductive)
    support, (queries, _) = tree_map(lambda value: value[0], tasks)
    if not isinstance(queries, Tensor):
        return Normalization(name, False)
    row, count = learner.network.rows()[0], learner.count_steps(None)
    with torch.no_grad():
        state = deque(states_of(learner, row, support, count), maxlen=1).pop()
        return Normalization(
            name, answers_depend(lambda inputs: predicted(learner, state, inputs), queries)
        )


def moved_by_tasks(learner: Learner, tasks: TaskBatch) -> dict[str, Tensor]:
    """Running statistics of a learner's network after a training step, by the name of a buffer.

    They move towards the moments of all support and query inputs of the step's tasks together, in
    one pass at the parameters before the step. Empty for a network without `RunningNorm`.
    """

    def together(support: Any, query: Any) -> Any:
        return torch.cat([support.flatten(0, 1), query.flatten(0, 1)])

    inputs = tree_map(together, tasks.support[0], tasks.query[0])
    return moved_statistics(learner.module, lambda: learner.outputs(inputs))
