"""Batches of the training part, augmented: a function of the step that keeps no state.

Axes: M members, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metalearn.data import Augmentation, ClassificationData, MemberBatches, augment

__all__ = ["LabelledBatch", "TrainingBatches"]

LabelledBatch = tuple[Tensor, Tensor]
"""Inputs ``[B, ...]`` and targets ``[B]``, or with M in front where members differ."""


class TrainingBatches:
    """What members see at each step.

    Args:
        data: labelled samples in three splits.
        order: which samples of the training part.
        augmentation: of pictures.
        seeds: of each member's augmentation; the first one's where all see the same samples.
        device: where batches are put.
    """

    def __init__(
        self,
        data: ClassificationData,
        order: MemberBatches,
        augmentation: Augmentation,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        self.data, self.order, self.augmentation = data, order, augmentation
        self.seeds, self.device = list(seeds), device

    def __call__(self, step: int) -> LabelledBatch:
        """Inputs and targets of a step."""
        x, y = self.data.take(self.order.indices(step), device=self.device)
        seeds = self.seeds if y.dim() == 2 else self.seeds[:1]
        return augment(x, self.augmentation, seeds=seeds, step=step), y

    @property
    def batch_size(self) -> int:
        """B."""
        return self.order.batch_size
