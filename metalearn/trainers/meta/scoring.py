"""Scores of outputs along the inner loop, of one learner or of an ensemble of them.

Axes: M members, T tasks, K inner steps, N query samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from metalearn.core import Engine, along_adaptation, sgd
from metalearn.core.bayes.predictive import (
    mean_log_probabilities,
    mutual_information,
    negative_log_likelihoods,
)
from metalearn.core.bayes.predictive_regression import regression_uncertainty
from metalearn.core.targets import is_label, labels_of, mean_without_padding, not_padding
from metalearn.core.tree import leaves, tree_map
from metalearn.trainers.meta.inductive import each_beside
from metalearn.trainers.meta.method_checks import CheckedLearner, check_outputs, of_task, predicted
from metalearn.trainers.meta.nan_scores import hits
from metalearn.trainers.meta.scores import MemberScores, QueryOutcomes, TaskScores
from metalearn.trainers.meta.uncertainty import task_calibration
from metalearn.types import Batch, Params, TaskBatch

__all__ = [
    "ScoredLearner",
    "along_states",
    "outputs_of_networks",
    "score_tasks",
    "scores_of_members",
]


class ScoredLearner(CheckedLearner, Protocol):
    """What scoring asks of a learner."""

    @property
    def batching(self) -> tuple[Engine, int | None]:
        """The engine, and how many tasks at a time."""

    def check(self, tasks: TaskBatch) -> None:
        """Refuse targets that do not fit."""

    def along(
        self,
        visit: Callable[[Any, Batch, Batch], Any],
        params: Params,
        tasks: TaskBatch,
        *,
        steps: int | None,
        alone: bool,
    ) -> Any:
        """What is to be seen in every state of every task."""


def score_tasks(
    learner: ScoredLearner,
    tasks: TaskBatch,
    *,
    steps: int | None,
    inductive: bool,
    check: Callable[[], None],
) -> TaskScores:
    """Scores of T tasks at every inner step; see `Learner.score`, whose arguments these are."""
    rows = outputs_of_networks(learner, tasks, steps=steps, inductive=inductive, check=check)
    if learner.network.count is None:
        return _scores_of_one(learner.kind, *rows[0], tasks.query[1])
    return scores_of_members(learner.kind, rows, tasks.query[1])


def outputs_of_networks(
    learner: ScoredLearner,
    tasks: TaskBatch,
    *,
    steps: int | None,
    inductive: bool,
    check: Callable[[], None],
) -> list[tuple[Tensor, Tensor]]:
    """Of each network, query losses ``[T, K+1]`` and outputs ``[T, K+1, N, ...]``."""
    learner.check(tasks)
    with learner.refusing_inputs(tasks):
        return [
            _outputs_along(learner, row, tasks, steps, inductive, check)
            for row in learner.network.rows()
        ]


def along_states(
    visit: Callable[[Any, Batch, Batch], Any],
    fit: Callable[[Params, Batch], Iterable[Any]],
    params: Params,
    tasks: TaskBatch,
    *,
    engine: Engine,
    chunk_size: int | None,
) -> Any:
    """``visit(state, support, query)`` in each of the S states of every task, ``[T, S, ...]``.

    Args:
        visit: written for one task.
        fit: gives a task's states, of parameters and support set.
        params: of one network.
        tasks: T.
        engine: how tasks are batched.
        chunk_size: tasks at a time.
    """

    def states(params: Params, support: Batch, query: Batch) -> Any:
        found = [visit(state, support, query) for state in fit(params, support)]
        return tree_map(lambda *values: torch.stack(values), found[0], *found[1:])

    rows = along_adaptation(  # of no step: the states are the visit's own
        states,
        lambda params, batch: leaves(params)[0].sum(),
        params,
        tasks,
        optimizer=sgd(1.0),
        steps=0,
        engine=engine,
        chunk_size=chunk_size,
    )
    return tree_map(lambda value: value[:, 0], rows)


def _outputs_along(
    learner: ScoredLearner,
    params: Params,
    tasks: TaskBatch,
    steps: int | None,
    inductive: bool,
    check: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """Query losses ``[T, K+1]`` and outputs ``[T, K+1, N, ...]`` of one network."""
    vectorize = learner.batching[0] != "loop"

    def visit(state: Any, support: Batch, query: Batch) -> tuple[Tensor, Tensor]:
        def together(inputs: Tensor) -> Tensor:
            check()
            outputs: Tensor = predicted(learner, state, inputs)
            return outputs

        if inductive:
            output = each_beside(together, support[0], query[0], vectorize=vectorize)
        else:
            output = together(query[0])
        check_outputs(learner, output, query[1])
        output = of_task(learner, output, support[1])
        return learner.criterion(output, query[1]), output

    found: tuple[Tensor, Tensor] = learner.along(visit, params, tasks, steps=steps, alone=inductive)
    return found


def _scores_of_one(kind: str, losses: Tensor, outputs: Tensor, targets: Tensor) -> TaskScores:
    """Scores of one learner.

    Args:
        kind: of the tasks.
        losses: query losses ``[T, K+1]``.
        outputs: ``[T, K+1, N, ...]``.
        targets: of the queries, ``[T, N, ...]``.
    """
    if kind == "regression":
        return TaskScores(losses, None, outputs)
    right = hits(outputs, labels_of(targets)[:, None]).to(losses.dtype)
    accuracies = mean_without_padding(right, not_padding(targets)[:, None])
    queries = QueryOutcomes(outputs[:, -1].softmax(-1), labels_of(targets))
    return TaskScores(losses, accuracies, outputs.argmax(-1), queries=queries)


def scores_of_members(
    kind: str, rows: Sequence[tuple[Tensor, Tensor]], targets: Tensor
) -> TaskScores:
    """Scores of the mean prediction, and of each member.

    Args:
        kind: of the tasks.
        rows: of each member, losses ``[T, K+1]`` and outputs ``[T, K+1, N, ...]``.
        targets: of the queries, ``[T, N, ...]``.
    """
    losses = torch.stack([loss for loss, _ in rows], 1)
    outputs = torch.stack([output for _, output in rows])
    if kind == "regression":
        mean = outputs.mean(0)
        spread = regression_uncertainty(outputs[:, :, -1]).epistemic
        error = (mean - targets[:, None]).square().flatten(2).mean(-1)
        members = MemberScores(losses, None, spread.flatten(1).mean(-1), None)
        return TaskScores(error, None, mean, members)
    labels, real = labels_of(targets), not_padding(targets)
    log_p = mean_log_probabilities(outputs)
    predictions = log_p.argmax(-1)
    right = hits(outputs, labels[:, None]).to(losses.dtype)
    found = hits(log_p, labels[:, None]).to(losses.dtype)
    epistemic = mean_without_padding(mutual_information(outputs[:, :, -1]), real)
    queries = QueryOutcomes(log_p[:, -1].exp(), labels)
    return TaskScores(
        mean_without_padding(_cross_entropies(log_p, targets), real[:, None]),
        mean_without_padding(found, real[:, None]),
        predictions,
        MemberScores(
            losses,
            mean_without_padding(right, real[:, None]).movedim(0, 1),
            epistemic,
            task_calibration(queries).to(losses),
        ),
        queries,
    )


def _cross_entropies(log_p: Tensor, targets: Tensor) -> Tensor:
    """``[T, K+1, N]`` of the mean prediction ``[T, K+1, N, C]``; of padding, something finite."""
    if not is_label(targets):
        return -(targets[:, None] * log_p).sum(-1)
    every = targets.clamp_min(0)[:, None].expand(log_p.shape[:-1])
    return negative_log_likelihoods(log_p, every)
