"""Types that all rooms share.

Axes: T tasks, N samples of a task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Batch", "LossFn", "Params", "Split", "TaskBatch", "TaskDistribution"]

Params = Any
"""Any pytree of floating-point tensors."""

Batch = Any
"""Any pytree of tensors whose leading axis is the sample axis; usually ``(inputs, targets)``."""

LossFn = Callable[[Params, Batch], Tensor]
"""Mean loss of a batch: a scalar, differentiable in the parameters."""

Split = Literal["train", "validation", "test"]


class TaskBatch(NamedTuple):
    """A batch of T tasks; every leaf has a leading task axis ``[T, N, ...]``."""

    support: Batch
    query: Batch


@runtime_checkable
class TaskDistribution(Protocol):
    """What a trainer asks of a source of tasks.

    A task is addressed by (seed, split, index): the same address gives the same task on any
    machine, in any batch, in any order. ``sample`` returns ``TaskBatch((x, y), (x, y))`` on
    ``device`` with inputs ``[T, N, *input_shape]`` (float32) and targets ``[T, N]`` (int64 class
    indices, classification) or ``[T, N, outputs]`` (float32, regression).
    """

    @property
    def kind(self) -> Literal["classification", "regression"]:
        """What the targets are."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        ...

    @property
    def outputs(self) -> int:
        """Classes of a task (its way), or the size of a regression target."""
        ...

    def sample(
        self, split: Split, indices: Sequence[int], *, device: torch.device | str = "cpu"
    ) -> TaskBatch:
        """Tasks ``indices`` of a split."""
        ...
