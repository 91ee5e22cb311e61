"""Tasks of noise that stand in for those of a training where nothing of these is to be seen.

Axes: T tasks, N samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.core.tree import tree_map
from metalearn.tasks import outputs_by_split
from metalearn.types import Batch, Split, TaskBatch, TaskDistribution

__all__ = ["stand_ins"]


def stand_ins(tasks: TaskDistribution, split: Split, count: int, device: torch.device) -> TaskBatch:
    """Tasks of the shapes that a split's have, ``[T, N, ...]``, with nothing of their values.

    Args:
        tasks: the source, of which one task is drawn for its shapes.
        split: of the task.
        count: T.
        device: where to put them.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = getattr(tasks, "vocabulary", None) or 2
    outputs = outputs_by_split(tasks)[split]

    def inputs(like: Tensor) -> Tensor:
        shape = (count, *like.shape[1:])
        if like.is_floating_point():
            return torch.rand(shape, generator=generator, dtype=like.dtype).to(device)
        return torch.randint(tokens, shape, generator=generator, dtype=like.dtype).to(device)

    def targets(like: Tensor) -> Tensor:
        shape = (count, *like.shape[1:])
        if not like.is_floating_point():
            return (torch.arange(shape[1], dtype=like.dtype, device=device) % outputs).repeat(
                count, 1
            )
        if tasks.kind == "classification":  # probabilities
            return torch.full(shape, 1 / outputs, dtype=like.dtype, device=device)
        return torch.randn(shape, generator=generator, dtype=like.dtype).to(device)

    def both(batch: Batch) -> Batch:
        x, y = batch
        return tree_map(inputs, x), targets(y)

    drawn = tasks.sample(split, [0])
    return TaskBatch(both(drawn.support), both(drawn.query))
