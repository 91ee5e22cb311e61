"""What one network of a training descends at every step: for those who go through its run again.

Axes: N examples of the training part, B samples of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError
from metalearn.trainers.supervised.batches import TrainingBatches, have_member_axis
from metalearn.trainers.supervised.losses import SupervisedLoss

__all__ = ["NetworkRun", "StepBatch", "example_weights_of", "ordinary_run", "step_batches"]

StepBatch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Inputs ``[B, ...]``, targets, which of the N examples they are, and the number of the step."""


@dataclass(frozen=True)
class NetworkRun:
    """One network, its examples and its loss; a trainer's ``network_run(member)`` gives it."""

    module: nn.Module
    """As it stands."""
    data: SupervisedData
    weights: Tensor
    """``[N]``, in the order of ``data.splits["train"]``; 1 where none are given."""
    batch: Callable[[int], StepBatch]
    batches: TrainingBatches
    """Of all members, from which they are."""
    loss: SupervisedLoss
    smoothing: Tensor
    """Of labels, a scalar."""
    rate: float | None = None
    """Learning rate of its own; None is the optimiser's."""
    decay: float | None = None
    """Weight decay of its own; None is the optimiser's."""


def ordinary_run(
    module: nn.Module, batches: TrainingBatches, loss: SupervisedLoss, steps: Mapping[str, float]
) -> NetworkRun:
    """Of a network trained alone.

    Raises:
        SettingError: ``max_norm`` or ``noise_multiplier`` of its ``steps`` are not those of an
            ordinary step.
    """
    for name, plain in (("max_norm", math.inf), ("noise_multiplier", 0.0)):
        if steps[name] != plain:
            accepted = f"{name}={plain:g} is needed, an ordinary step"
            raise SettingError(f"trainer.{name}", steps[name], accepted)
    weights, smoothing = example_weights_of(batches, 0), torch.zeros((), device=batches.device)
    rows = step_batches(batches, 0)
    return NetworkRun(module, batches.data, weights, rows, batches, loss, smoothing)


def example_weights_of(batches: TrainingBatches, member: int) -> Tensor:
    """``[N]``, of one member."""
    samples = batches.data.splits["train"]
    if batches.weights is None:
        return torch.ones(len(samples), device=batches.device)
    return batches.weights.of(samples)[member].clone()


def step_batches(batches: TrainingBatches, member: int) -> Callable[[int], StepBatch]:
    """Batches of one member, with the numbers of their examples."""
    samples = batches.data.splits["train"]
    columns = torch.zeros(len(batches.data.inputs), dtype=torch.int64)
    columns[samples] = torch.arange(len(samples))

    def batch(step: int) -> StepBatch:
        x, y, *_ = batches(step)
        rows = columns[batches.order.indices(step).cpu()]
        if have_member_axis(y):
            x, y, rows = x[member], y[member], rows[member]
        return x, y, rows.to(batches.device), torch.tensor(step, device=batches.device)

    return batch
