"""The gradient of query losses with respect to weights on support examples, of any task.

Axes: T tasks, S support examples, Q queries, R losses to be explained, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metalearn.attribution.query_losses import Reduction, check_reduction
from metalearn.attribution.support_tangents import forward_derivatives
from metalearn.core import Adaptation, Eager, along_adaptation, sgd
from metalearn.core._functorch import transforms_active
from metalearn.core.autodiff.backend import Functional
from metalearn.core.checks import check_samples
from metalearn.core.chunking import ChunkSize, resolve_chunk, sample_count
from metalearn.core.meta.task_checks import check_sets
from metalearn.core.ops import decomposed_operations_in_loss
from metalearn.core.tree import flatten, leaves, tree_map, unflatten
from metalearn.errors import SettingError
from metalearn.types import Batch, Params, TaskBatch

__all__ = ["TaskEngine", "WeightedAdaptation"]

TaskEngine = Literal["vmap", "loop"]
"""``vmap`` takes some tasks at once, ``loop`` one after another, with one backward pass for each
query, which takes what vmap cannot."""


@dataclass(frozen=True)
class WeightedAdaptation:
    """How queries fare after adaptation with weights on support examples, and its gradient."""

    adaptation: Adaptation
    """Its loss takes a pair of the support set and of weights ``[S]``."""
    query_losses: Callable[[Params, Batch, Batch], Tensor]
    """``[R]``, those to be explained, of adapted parameters, support and query set."""

    def scores(
        self,
        params: Params,
        tasks: TaskBatch,
        reduction: Reduction,
        engine: TaskEngine,
        chunk_size: ChunkSize,
        memory: int | str | None,
    ) -> Tensor:
        """Scores of all tasks, ``[T, R, S]``, or ``[T, S]`` of means."""
        check_reduction(reduction)
        if engine not in get_args(TaskEngine):
            accepted = f"one of {', '.join(get_args(TaskEngine))} is needed"
            raise SettingError("engine", engine, accepted)
        check_sets(tasks, 1)
        check_samples(tasks.support, "support")
        for name, batch in zip(("support", "query"), tasks):
            sample_count(tree_map(lambda x: x[0], batch), name)

        def of_some(some: TaskBatch, size: int | None = None) -> Tensor:
            how: Any = {"optimizer": sgd(1.0), "steps": 0, "engine": engine, "chunk_size": size}
            found: Tensor = along_adaptation(self._of_task, _no_loss, params, some, **how)
            return found[:, 0]  # of no step: adaptation is the visit's own

        size = resolve_chunk(of_some, tasks, chunk_size, memory, of="task")
        scores = of_some(tasks, size)
        return scores[:, 0] if reduction == "mean" else scores

    def _of_task(self, params: Params, support: Batch, query: Batch) -> Tensor:
        """Scores of one task, ``[R, S]``, backward for R or forward for S, the fewer of them."""
        backend = Functional() if transforms_active() else Eager()
        values, spec = flatten(params)
        loop = self.adaptation.loop(params, backend, _guarded)
        ones = values[0].new_ones(sample_count(support, "support"))
        with torch.no_grad():
            like = self.query_losses(params, support, query)
        if not self.adaptation.steps or not loop.adapting(values):
            return torch.zeros(len(like), len(ones), dtype=like.dtype, device=like.device)

        def losses(values: list[Tensor]) -> Tensor:
            return _guarded(self.query_losses)(unflatten(values, spec), support, query)

        if len(like) > len(ones):
            given = (values, support, ones, self.adaptation.steps)
            return -forward_derivatives(loop, losses, *given)

        def outcome(inputs: list[Tensor]) -> list[Tensor]:
            at, state = values, loop.start(values)
            for k in range(self.adaptation.steps):
                at, state, _ = loop.step(at, state, loop.batch((support, *inputs), k))
            return [losses(at)]

        each = torch.eye(len(like), dtype=like.dtype, device=like.device)
        if isinstance(backend, Functional):
            (found,) = backend.pull_many(outcome, [ones])([each])
            return -found
        _, pull = backend.value_and_pull(outcome, [ones])
        return -torch.stack([pull([row])[0] for row in each])


def _guarded(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same with operations in plain arithmetic where derivatives of torch's own are wrong."""

    def run(*args: Any) -> Tensor:
        with decomposed_operations_in_loss():
            return function(*args)

    return run


def _no_loss(params: Params, batch: Batch) -> Tensor:
    """Of no inner step."""
    found: Tensor = leaves(params)[0].sum()
    return found
