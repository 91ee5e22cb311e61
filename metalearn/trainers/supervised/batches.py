"""Batches of the training part, augmented: a function of the step that keeps no state.

Axes: M members, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metalearn.data import Augmentation, MemberBatches, augment
from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError

__all__ = ["LabelledBatch", "TrainingBatches", "have_member_axis"]

LabelledBatch = tuple[Tensor, Tensor]
"""Inputs ``[B, ...]`` and targets, or with M in front of both where members differ.

Targets are classes ``[B]``, or real numbers ``[B, D]``.
"""


def have_member_axis(targets: Tensor) -> bool:
    """Whether targets of a batch have M in front, told by their type and shape alone."""
    return targets.dim() == (3 if targets.is_floating_point() else 2)


class TrainingBatches:
    """What members see at each step.

    Args:
        data: samples with targets in three splits.
        order: which samples of the training part.
        augmentation: of pictures.
        seeds: of each member's augmentation; the first one's where all see the same samples.
        device: where batches are put.

    Raises:
        SettingError: augmentation of what are no pictures.
    """

    def __init__(
        self,
        data: SupervisedData,
        order: MemberBatches,
        augmentation: Augmentation,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        if augmentation.active and len(data.input_shape) != 3:
            asked = {name: value for name, value in vars(augmentation).items() if value}
            accepted = f"pictures are needed for it, and inputs are {list(data.input_shape)}"
            raise SettingError(*next(iter(asked.items())), accepted)
        self.data, self.order, self.augmentation = data, order, augmentation
        self.seeds, self.device = list(seeds), device

    def __call__(self, step: int) -> LabelledBatch:
        """Inputs and targets of a step."""
        x, y = self.data.take(self.order.indices(step), device=self.device)
        seeds = self.seeds if have_member_axis(y) else self.seeds[:1]
        return augment(x, self.augmentation, seeds=seeds, step=step), y

    @property
    def batch_size(self) -> int:
        """B."""
        return self.order.batch_size
