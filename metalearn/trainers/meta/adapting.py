"""Learners that are adapted to one support set, as ordinary modules.

Axes: N support samples.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from torch import nn

from metalearn.core.checks import check_pair, check_samples
from metalearn.core.chunking import sample_count
from metalearn.core.targets import is_label
from metalearn.core.tree import check_tensors, tree_map
from metalearn.trainers.meta.absent_classes import AmongPresent, absent
from metalearn.trainers.meta.inductive import beside_support
from metalearn.trainers.meta.method_checks import (
    CheckedLearner,
    check_module,
    made_of_features,
    states_of,
)
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
        module = check_module(learner, learner.as_module(copy, state))
        module = _of_task(learner, module, support[1]).eval()
        if not transductive:
            module = beside_support(module, support[0], vectorize=learner.vectorized)
        modules.append(module)
    return learner.network.joined(modules)


def _of_task(learner: AdaptedLearner, module: nn.Module, targets: Any) -> nn.Module:
    """The module, for the classes of a support set alone where `of_task` predicts among them.

    Labels have no class above their largest; probabilities may lack any.
    """
    if not made_of_features(learner) or is_label(targets):
        return module
    missing = absent(targets)
    return AmongPresent(module, missing) if bool(missing.any()) else module
