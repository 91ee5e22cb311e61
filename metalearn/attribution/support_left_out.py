"""Support examples left out one by one, really, and what that does to the losses of queries.

Axes: T tasks, S support examples, Q queries, P pairs of a task and an example, K inner steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metalearn.attribution.query_losses import Reduction, check_reduction, losses_of_queries
from metalearn.core.chunking import ChunkSize, chunks, resolve_chunk, sample_count
from metalearn.core.loss_checks import outside_inference_mode
from metalearn.core.meta.task_checks import check_sets
from metalearn.core.targets import is_label, not_padding
from metalearn.core.tree import leaves, tree_map
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.trainers.meta.method_checks import made_of_features
from metalearn.trainers.meta.protocol import Learner
from metalearn.types import Batch, Params, TaskBatch

__all__ = ["leave_one_support_out"]


@outside_inference_mode
@checked
def leave_one_support_out(
    learner: Learner,
    tasks: TaskBatch,
    *,
    steps: int | None = None,
    reduction: Reduction = "none",
    chunk_size: ChunkSize = "auto",
    memory: int | str | None = None,
) -> Tensor:
    """Changes ``[T, Q, S]`` of query losses: ℓ_q without example s minus ℓ_q with all S.

    Every example is left out in turn and the learner, as it is now, adapts to the S − 1 others, so
    that this is the test of `learner_support_scores` and the way for learners of which a weight on
    an example has no meaning. In units of the loss. Positive: a helpful example. Losses are
    those of `Learner.score`: a mean loss over a smaller set is divided by S − 1, and statistics of
    batch norms are of the others.

    Args:
        learner: any; of an `Ensemble`, M are scored each alone.
        tasks: T, every leaf ``[T, N, ...]``.
        steps: K; None takes those of validation.
        reduction: ``"mean"`` gives ``[T, S]`` of the mean of a task's query losses.
        chunk_size: pairs of a task and an example that are adapted to at once; ``"auto"`` takes as
            many as ``memory`` has room for; None takes all.
        memory: bytes for ``chunk_size="auto"``, a number or ``"1GB"``; half of what is free by
            default.

    Returns:
        ``[T, Q, S]``, or ``[T, S]`` of mean losses; of an `Ensemble` ``[M, ...]``.

    Raises:
        SettingError: support sets of one example; an example that is the only one of its class,
            where a learner needs one of each; what its ``score`` refuses.
    """
    check_reduction(reduction)
    learner.check(tasks)
    count = check_sets(tasks, 1)
    examples = sample_count(tree_map(lambda x: x[0], tasks.support), "support")
    if examples < 2:
        accepted = "at least 2 are needed, so that one can be left out"
        raise SettingError("support", f"{examples} example", accepted)
    _check_classes(learner, tasks)
    where = leaves(tasks)[0].device
    pairs = torch.cartesian_prod(*(torch.arange(n, device=where) for n in (count, examples)))

    def of(row: Params) -> Tensor:
        def without(some: Tensor) -> Tensor:
            return _query_losses(learner, row, _left_out(tasks, some), steps, reduction)

        size = resolve_chunk(without, pairs, chunk_size, memory, of="pair of task and example")
        found = torch.cat([without(some) for some in chunks(pairs, size)])
        change = found.reshape(count, examples, found.shape[1]).mT
        whole = (_query_losses(learner, row, x, steps, reduction) for x in chunks(tasks, size))
        scores: Tensor = change - torch.cat([*whole])[..., None]
        return scores[:, 0] if reduction == "mean" else scores

    with learner.refusing_inputs(tasks):
        rows = [of(row) for row in learner.network.rows()]
    learner.check(tasks)  # of which it keeps the number of classes
    return rows[0] if learner.network.count is None else torch.stack(rows)


def _left_out(tasks: TaskBatch, pairs: Tensor) -> TaskBatch:
    """P tasks, each without the example of its pair, for pairs ``[P, 2]``."""
    of, left = pairs.unbind(1)
    examples = int(leaves(tasks.support)[0].shape[1])
    places = torch.arange(examples - 1, device=pairs.device)
    kept = places + (places >= left[:, None]).long()  # [P, S - 1]
    support = tree_map(lambda x: x[of[:, None], kept], tasks.support)
    return TaskBatch(support, tree_map(lambda x: x[of], tasks.query))


def _query_losses(
    learner: Learner, params: Params, tasks: TaskBatch, steps: int | None, reduction: Reduction
) -> Tensor:
    """``[T, Q]``, or ``[T, 1]`` of means, after adaptation of one network."""
    learner.check(tasks)

    def visit(state: Any, support: Batch, query: Batch) -> Tensor:
        return losses_of_queries(learner, state, support, query, reduction)

    along: Tensor = learner.along(visit, params, tasks, steps=steps, alone=False)
    return along[:, -1].detach()


def _check_classes(learner: Learner, tasks: TaskBatch) -> None:
    """Refuse examples that are the only ones of their class where a learner needs one of each."""
    targets = tasks.support[1]
    if not made_of_features(learner) or not is_label(targets):
        return
    real = not_padding(targets)
    alike = (targets[:, :, None] == targets[:, None]).sum(-1)  # [T, S]: how many of that class
    alone = real & (alike == 1)
    if bool(alone.any()):
        task, example = alone.nonzero()[0].tolist()
        shown = f"one of class {int(targets[task, example])} in task {task}"
        accepted = f"{type(learner).__name__} needs two of every class, so that one can be left out"
        raise SettingError("support", shown, accepted)
