"""What training on a task did to the losses of other tasks: TracIn over tasks.

Axes: C checkpoints, R targets, T tasks, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import get_args

import torch
from torch import Tensor

from metalearn.attribution.similarity import GradientMetric, check_metric, of_length_one
from metalearn.attribution.tracin import check_checkpoints
from metalearn.core.checks import call_given
from metalearn.core.chunking import ChunkSize, chunks, resolve_chunk, sample_count
from metalearn.core.loss_checks import outside_inference_mode
from metalearn.core.precision import widened
from metalearn.core.tree import check_tensors, leaves, match_names
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.types import Batch, Params, TaskBatch

__all__ = ["task_scores"]


@outside_inference_mode
@checked
def task_scores(
    gradients_fn: Callable[[Params, TaskBatch], Params],
    checkpoints: Sequence[Params],
    targets: TaskBatch,
    tasks: TaskBatch,
    *,
    learning_rates: Sequence[float],
    metric: GradientMetric = "dot",
    parameters: str | Sequence[str] | None = None,
    chunk_size: ChunkSize = "auto",
    memory: int | str | None = None,
) -> Tensor:
    """Scores ``[R, T]`` of training tasks: Σ_c η_c · ⟨∇L_r(θ_c), ∇L_t(θ_c)⟩ of meta-gradients.

    ∇L_t is the gradient of task t's query loss through its adaptation. To first order, by how much
    a step of meta-training on task t alone at every checkpoint lowers the query loss of target r,
    in units of the loss. Positive: a helpful task. ``metric="cosine"`` puts the cosine of the two
    gradients, 0 where one of them is, in the place of their product: it leaves out how large they
    are and only ranks.

    Args:
        gradients_fn: ``gradients_fn(params, tasks)``, the gradient of each task with leaves
            ``[T, ...]``, such as ``learner.task_gradients`` of any learner, or
            `metalearn.core.task_meta_gradients` with its settings.
        checkpoints: C trees of parameters θ_c, such as ``[learner.params]``.
        targets: ``TaskBatch`` of R tasks, whose query losses are explained.
        tasks: ``TaskBatch`` of T training tasks.
        learning_rates: C numbers η_c; see `tracin_scores`.
        metric: ``"dot"`` or ``"cosine"``.
        parameters: patterns of those whose gradients count, such as ``"head.*"``; by default all.
        chunk_size: tasks whose gradients are held at once; ``"auto"`` takes as many as ``memory``
            has room for and is not for use inside vmap; None takes all.
        memory: bytes for ``chunk_size="auto"``, a number or ``"1GB"``; half of what is free by
            default.

    Raises:
        SettingError: no checkpoint, another number of learning rates, an unknown metric, gradients
            that are not one for each task; what ``gradients_fn`` refuses.

    Source: Pruthi et al., "Estimating Training Data Influence by Tracing Gradient Descent",
    NeurIPS 2020 (TracInCP), with tasks in the place of examples.
    """
    check_checkpoints(checkpoints, learning_rates)
    check_metric(metric, get_args(GradientMetric))
    for name, batch in (("targets", targets), ("tasks", tasks)):
        sample_count(batch, name)

    def at(params: Params, rate: float) -> Tensor:
        passes = _TaskGradients(gradients_fn, params, parameters, metric == "cosine")
        size = resolve_chunk(passes.rows, tasks, chunk_size, memory, of="task")
        found = [
            torch.cat([left @ right.mT for right in passes.all(tasks, size)], 1)
            for left in passes.all(targets, size)
        ]
        return rate * torch.cat(found)

    return reduce(torch.add, map(at, checkpoints, learning_rates))


@dataclass(frozen=True)
class _TaskGradients:
    """Gradients of tasks at one place, of chosen parameters."""

    gradients_fn: Callable[[Params, TaskBatch], Params]
    params: Params
    parameters: str | Sequence[str] | None
    cosine: bool
    """Whether each is divided by its norm."""

    def all(self, tasks: TaskBatch, size: int | None) -> Iterator[Tensor]:
        """Rows of one chunk after another."""
        return map(self.rows, chunks(tasks, size))

    def rows(self, tasks: Batch) -> Tensor:
        """``[T, P]``, in float32 at least."""
        grads = call_given(self.gradients_fn, "gradients_fn", self.params, TaskBatch(*tasks))
        check_tensors(grads, "gradients_fn")
        count = sample_count(tasks)
        sizes = {len(leaf) if leaf.dim() else 0 for leaf in leaves(grads)}
        if sizes != {count}:
            accepted = f"leaves [{count}, ...] are needed, a gradient for each of {count} tasks"
            raise SettingError("gradients_fn", f"leaves of length {sorted(sizes)}", accepted)
        values = [widened(leaf.detach()).reshape(count, leaf[0].numel()) for leaf in leaves(grads)]
        if self.parameters is not None:
            hits = match_names(grads, self.parameters, "parameters")
            values = [value for value, hit in zip(values, hits) if hit]
        if not values:
            accepted = "a pattern that matches a parameter is needed"
            raise SettingError("parameters", self.parameters, accepted)
        return of_length_one(torch.cat(values, 1)) if self.cosine else torch.cat(values, 1)
