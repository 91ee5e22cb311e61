"""What each support example of a task did to the losses of its queries, through adaptation.

Axes: T tasks, S support examples, Q queries, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metalearn.attribution.query_losses import Reduction, losses_of_queries
from metalearn.attribution.support_weights import TaskEngine, WeightedAdaptation
from metalearn.core import Adaptation, InnerOptimizer
from metalearn.core.checks import call_given, check_pair
from metalearn.core.chunking import ChunkSize, sample_count
from metalearn.core.loss_checks import UnreachedError, outside_inference_mode
from metalearn.core.targets import not_padding
from metalearn.core.tree import check_floating
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.trainers.meta.maml import MetaLearner
from metalearn.trainers.meta.protocol import Learner
from metalearn.types import Batch, Params, TaskBatch

__all__ = ["learner_support_scores", "support_example_scores"]


@outside_inference_mode
@checked
def support_example_scores(
    losses_fn: Callable[[Params, Batch], Tensor],
    params: Params,
    tasks: TaskBatch,
    *,
    optimizer: InnerOptimizer,
    steps: int,
    frozen: str | Sequence[str] | None = None,
    reduction: Reduction = "none",
    engine: TaskEngine = "vmap",
    chunk_size: ChunkSize = "auto",
    memory: int | str | None = None,
) -> Tensor:
    """Scores ``[T, Q, S]``: −∂ℓ_q(θ_K)/∂w_s at w = 1, exact through all inner steps.

    θ_K comes of K inner steps on (1/S)·Σ_s w_s·ℓ_s(θ), which `metalearn.core.adapt` takes with
    w = 1. In units of the loss: to first order, by how much the query's loss rises where the
    example's loss no longer counts (w_s = 0, and still divided by S). Positive: a helpful example.

    Derivatives are taken backward for each query or forward for each example, whichever are fewer:
    memory grows with min(Q, S), backward with K too.

    Losses are those of samples that are seen together, so that what a network computes of the whole
    set, such as statistics of batch norms, stays as it is: a weight is on the loss alone.

    Args:
        losses_fn: ``losses_fn(params, batch)``, the losses ``[N]`` of a batch's samples, such as
            ``F.cross_entropy(..., reduction="none")``; adaptation descends their mean.
        params: θ, any tree of floating-point tensors.
        tasks: ``TaskBatch(support, query)``, every leaf ``[T, S, ...]`` or ``[T, Q, ...]``.
        optimizer: the inner optimiser; gradients of parts of the support set (``support_batch``)
            are means over the part.
        steps: K; with 0 all scores are 0.
        frozen: patterns of parameters that the inner loop leaves alone, as of `adapt`.
        reduction: ``"mean"`` gives scores ``[T, S]`` for the mean of a task's query losses, for
            about the time of one query.
        engine: see `TaskEngine`; both give the same.
        chunk_size: tasks at a time; ``"auto"`` takes as many as ``memory`` has room for and is not
            for use inside vmap; None takes all.
        memory: bytes for ``chunk_size="auto"``, a number or ``"1GB"``; half of what is free by
            default.

    Raises:
        SettingError: tasks whose leading axes differ, sets without samples; losses that are not
            one for each sample, or in which no parameter that adapts has a part; what `adapt`
            refuses.
        VectorizationError: losses that vmap cannot take and ``engine="loop"`` can.
    """
    check_floating(params, "params")
    losses = _SampleLosses(losses_fn, reduction)
    adaptation = Adaptation(losses.weighted, optimizer, steps, frozen)
    adaptation.check_schedule(params)
    weighted = WeightedAdaptation(adaptation.detached(), losses.of_queries)
    try:
        return weighted.scores(params, tasks, reduction, engine, chunk_size, memory)
    except UnreachedError as error:
        raise UnreachedError("losses_fn", error.value, error.accepted) from None


@outside_inference_mode
@checked
def learner_support_scores(
    learner: Learner,
    tasks: TaskBatch,
    *,
    steps: int | None = None,
    reduction: Reduction = "none",
    chunk_size: ChunkSize = "auto",
    memory: int | str | None = None,
) -> Tensor:
    """`support_example_scores` of a learner with an inner loop, such as MAML, as it is now.

    Adaptation and query losses are those of `Learner.score`. Padding (−100) has scores of 0, and S
    counts the others; the mean over queries is over those that are no padding.

    Args:
        learner: a `MetaLearner` or one of its kind (ANIL, MetaSGD, CAVIA, MAML++ …), whose inner
            loop descends the losses of support examples; of an `Ensemble`, M are scored each alone.
        tasks: T, every leaf ``[T, N, ...]``.
        steps: K; None takes those of validation.
        reduction: as for `support_example_scores`, as are ``chunk_size`` and ``memory``.
        chunk_size: see there.
        memory: see there.

    Returns:
        ``[T, Q, S]``, or ``[T, S]`` of mean losses; of an `Ensemble` ``[M, ...]``.

    Raises:
        SettingError: a learner without such an inner loop, for which there is
            `leave_one_support_out`; what its ``score`` refuses.
    """
    if not isinstance(learner, MetaLearner):
        accepted = (
            "a learner whose inner loop descends the losses of support examples is needed, such as "
            "MAML; leave_one_support_out takes every learner"
        )
        raise SettingError("learner", type(learner).__name__, accepted)
    learner.check(tasks)
    engine: TaskEngine = "loop" if learner.batching[0] == "loop" else "vmap"

    def of_queries(params: Params, support: Batch, query: Batch) -> Tensor:
        return losses_of_queries(learner, params, support, query, reduction)

    def of(row: Params) -> Tensor:
        start, adaptation = learner.scored(row, steps)
        inner = replace(adaptation, loss=_weighted_loss(learner, adaptation))
        weighted = WeightedAdaptation(inner.detached(), of_queries)
        return weighted.scores(start, tasks, reduction, engine, chunk_size, memory)

    with learner.refusing_inputs(tasks):
        rows = [of(row) for row in learner.network.rows()]
    return rows[0] if learner.network.count is None else torch.stack(rows)


@dataclass(frozen=True)
class _SampleLosses:
    """Losses ``[N]`` of samples, as a function gives them."""

    losses_fn: Callable[[Params, Batch], Tensor]
    reduction: Reduction

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """Refused where they are not one for each of N samples."""
        found: Any = call_given(self.losses_fn, "losses_fn", params, batch)
        shape = (sample_count(batch),)
        if not isinstance(found, Tensor) or found.shape != shape or not found.is_floating_point():
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            accepted = f"losses {shape}, one for each sample, are needed (reduction='none')"
            raise SettingError("losses_fn", got, accepted)
        return found

    def weighted(self, params: Params, weighted_batch: Any) -> Tensor:
        """(1/N)·Σ w_i·ℓ_i of a pair of a batch and of weights ``[N]``."""
        batch, weights = weighted_batch
        losses = self(params, batch)
        return torch.mean(weights.to(losses.dtype) * losses)

    def of_queries(self, params: Params, support: Batch, query: Batch) -> Tensor:
        """``[Q]``, or ``[1]`` of their mean."""
        losses = self(params, query)
        return losses.mean()[None] if self.reduction == "mean" else losses


def _weighted_loss(learner: MetaLearner, adaptation: Adaptation) -> Callable[..., Tensor]:
    """A learner's inner loss with weights on samples: L + (1/S)·Σ_s (w_s − 1)·ℓ_s.

    With weights of 1 it is the learner's own, whatever that adds to losses of samples.
    """

    def loss(params: Params, weighted: Any) -> Tensor:
        batch, weights = weighted
        inputs, targets = check_pair(batch)
        outputs = learner.apply(params, learner.buffers, inputs)
        losses = learner.criterion.of_samples(outputs, targets)
        count = not_padding(targets).sum() if learner.kind == "classification" else len(losses)
        more = torch.sum((weights - 1).to(losses) * losses) / count
        return adaptation.loss(params, batch) + more

    return loss
