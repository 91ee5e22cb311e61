"""Scores of support examples and of training tasks of a trained meta-learner, by every method.

Axes: M networks, T test tasks, Q queries, S support examples, N training tasks, C outputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metalearn.attribution.attributing import correlation_of_members
from metalearn.attribution.datamodels import rank_correlations
from metalearn.attribution.query_losses import losses_of_queries
from metalearn.attribution.support_examples import learner_support_scores
from metalearn.attribution.support_left_out import leave_one_support_out
from metalearn.core.targets import real_samples
from metalearn.errors import SettingError
from metalearn.evaluation.seeds import SeedMean, mean_over_seeds
from metalearn.signatures import checked
from metalearn.trainers.meta.method_checks import of_task, predicted
from metalearn.trainers.meta.protocol import Learner
from metalearn.types import Batch, TaskBatch

__all__ = ["ADAPTATION", "LEFT_OUT", "LearnerScores", "learner_scores"]

ADAPTATION, LEFT_OUT = "adaptation", "left_out"
"""Methods: the gradient through adaptation, and adapting without an example."""


@dataclass
class LearnerScores:
    """What `learner_scores` found of the support examples of T tasks."""

    losses: Tensor
    """``[M, T, Q]``, of queries after adaptation."""
    outputs: Tensor
    """``[M, T, Q, C]``."""
    real_queries: Tensor
    """``[T, Q]``: which are no padding."""
    real_examples: Tensor
    """``[T, S]``: which are no padding."""
    by_member: dict[str, Tensor] = field(default_factory=dict)
    """Method to ``[M, T, Q, S]``; padding has no part in what is made of them."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each method, all networks together."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Methods that this learner or these tasks have nothing for, and why."""

    @property
    def scores(self) -> dict[str, Tensor]:
        """Method to ``[T, Q, S]``: the mean over networks, which is that of their mean loss."""
        return {name: found.mean(0) for name, found in self.by_member.items()}

    @property
    def disagreement(self) -> dict[str, Tensor]:
        """Of each method ``[T, Q]``: one minus the mean correlation of two networks' scores.

        Of several networks: 0 where they agree which examples mattered, 1 where they have nothing
        in common; NaN for queries that are padding.
        """
        return {
            name: self._disagreement(found)
            for name, found in self.by_member.items()
            if len(found) > 1
        }

    def _disagreement(self, found: Tensor) -> Tensor:
        apart = torch.full(self.real_queries.shape, torch.nan, dtype=torch.float64)
        for task, (queries, examples) in enumerate(zip(self.real_queries, self.real_examples)):
            known = found[:, task, queries][..., examples]
            apart[task, queries] = 1 - correlation_of_members(known)
        return apart

    @property
    def agreement(self) -> SeedMean | None:
        """Rank correlation over examples of both methods, the mean over queries and then tasks.

        Left out are queries whose losses do not change, or whose scores are not finite; None where
        there are not both methods.
        """
        if {ADAPTATION, LEFT_OUT} - {*self.by_member}:
            return None
        both = torch.stack([self.scores[name] for name in (ADAPTATION, LEFT_OUT)])
        means = []
        for task, (queries, examples) in enumerate(zip(self.real_queries, self.real_examples)):
            rows = both[:, task, queries][..., examples]
            one, other = rows[:, rows.isfinite().all(2).all(0)]
            each = rank_correlations(one, other) if len(one) else one.sum(1)
            if len(known := each[~each.isnan()]):
                means.append(float(known.mean()))
        return mean_over_seeds(means) if means else None


@checked
def learner_scores(
    learner: Learner,
    tasks: TaskBatch,
    *,
    members: Sequence[int] | None = None,
    check: bool = True,
    memory: int | str | None = None,
) -> LearnerScores:
    """Score the support examples of tasks by the methods that a learner has.

    A learner with an inner loop is scored through it (`learner_support_scores`), and every example
    is left out really (`leave_one_support_out`) as the check of that. A learner without one is
    scored by leaving out alone. A method that cannot be has its reason in ``reasons``.

    Args:
        learner: any.
        tasks: T.
        members: which networks of an ensemble; None takes all.
        check: leave examples out where there are scores through adaptation.
        memory: of tasks that are adapted to at once; see `learner_support_scores`.

    Raises:
        SettingError: tasks that do not fit the learner, a member that there is not.
    """
    rows = learner.network.rows()
    chosen = list(range(len(rows))) if members is None else list(members)
    if not chosen:
        raise SettingError("members", [], "at least one is needed")
    for member in chosen:
        if not 0 <= member < len(rows):
            accepted = f"numbers from 0 to {len(rows) - 1} are needed"
            raise SettingError("members", member, accepted)
    learner.check(tasks)
    with learner.refusing_inputs(tasks):
        ends = [_ends(learner, rows[member], tasks) for member in chosen]
    losses, outputs = (torch.stack(part).cpu() for part in zip(*ends))
    queries, examples = (real_samples(y).cpu() for _, y in (tasks.query, tasks.support))
    found = LearnerScores(losses, outputs, queries, examples)
    alone = learner.network.count is None

    def run(name: str, method: Callable[..., Tensor]) -> None:
        started = time.perf_counter()
        try:
            scores = method(learner, tasks, memory=memory)
        except SettingError as error:
            found.reasons[name] = str(error)
            return
        found.seconds[name] = time.perf_counter() - started
        found.by_member[name] = (scores[None] if alone else scores[chosen]).cpu()

    run(ADAPTATION, learner_support_scores)
    if check or ADAPTATION not in found.by_member:
        run(LEFT_OUT, leave_one_support_out)
    return found


def _ends(learner: Learner, params: Any, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
    """Losses ``[T, Q]`` and outputs ``[T, Q, C]`` of one network after adaptation."""

    def visit(state: Any, support: Batch, query: Batch) -> tuple[Tensor, Tensor]:
        outputs = of_task(learner, predicted(learner, state, query[0]), support[1])
        return losses_of_queries(learner, state, support, query, "none"), outputs

    losses, outputs = learner.along(visit, params, tasks, steps=None, alone=False)
    return losses[:, -1].detach(), outputs[:, -1].detach()
