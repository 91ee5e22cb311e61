"""Learners that are adapted to one support set, as ordinary modules.

Axes: N support samples.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from torch import nn

from metalearn.core.checks import check_pair, check_samples
from metalearn.core.chunking import sample_count
from metalearn.core.tree import check_tensors, tree_map
from metalearn.trainers.meta.inductive import beside_support
from metalearn.trainers.meta.method_checks import CheckedLearner, check_module, states_of
from metalearn.types import Batch, TaskBatch

__all__ = ["AdaptedLearner", "adapted"]


class AdaptedLearner(CheckedLearner, Protocol):
    """What adaptation asks of a learner."""

    @property
    def vectorized(self) -> bool:
        """Whether vmap takes the module."""

    def check(self, tasks: TaskBatch) -> None:
        """Refuse targets that do not fit."""

    def count_steps(self, steps: int | None) -> int:
        """K, refused where it is no number of steps."""

    def as_module(self, module: nn.Module, state: Any) -> nn.Module:
        """A module that predicts as a state does."""


def adapted(
    learner: AdaptedLearner, support: Batch, steps: int | None, *, transductive: bool
) -> nn.Module:
    """A copy of a learner's module for one task; see `Learner.adapt`, whose arguments these are."""
    check_pair(support, "support")
    check_samples(support, "support")
    sample_count(support[0])
    check_tensors(support[1], "support targets")
    alone = tree_map(lambda x: x[None], support)
    tasks = TaskBatch(alone, alone)
    learner.check(tasks)
    count, modules = learner.count_steps(steps), []
    for copy, row in zip(learner.network.copies(), learner.network.rows()):
        with learner.refusing_inputs(tasks):
            state = deque(states_of(learner, row, support, count), maxlen=1).pop()
        module = check_module(learner, learner.as_module(copy, state)).eval()
        if not transductive:
            module = beside_support(module, support[0], vectorize=learner.vectorized)
        modules.append(module)
    return learner.network.joined(modules)
