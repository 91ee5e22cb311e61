"""Batches of the training part, augmented: a function of the step that keeps no state.

Axes: M members, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from metalearn.data import Augmentation, MemberBatches, augment
from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError
from metalearn.models.dropout import part_of_batch
from metalearn.ranks import Share
from metalearn.trainers.diagnostics import batch_dependence
from metalearn.trainers.supervised.member_weights import ExampleWeights

__all__ = [
    "LabelledBatch",
    "TrainingBatches",
    "check_augmentation",
    "check_parts",
    "have_member_axis",
    "samples_of_rank",
]

LabelledBatch = tuple[Tensor, ...]
"""Inputs ``[B, ...]`` and targets, or with M in front of both where members differ.

Targets are classes ``[B]``, or real numbers ``[B, D]``. Where examples are weighted, their weights
stand after them: ``[M, B]``, or ``[B]`` of a single network.
"""


def have_member_axis(targets: Tensor) -> bool:
    """Whether targets of a batch have M in front, told by their type and shape alone."""
    return targets.dim() == (3 if targets.is_floating_point() else 2)


def check_augmentation(augmentation: Augmentation, data: SupervisedData) -> None:
    """Refuse augmentation of what are no pictures.

    Raises:
        SettingError: names the first setting of it.
    """
    if augmentation.active and len(data.input_shape) != 3:
        asked = {name: value for name, value in vars(augmentation).items() if value}
        accepted = f"pictures are needed for it, and inputs are {list(data.input_shape)}"
        raise SettingError(*next(iter(asked.items())), accepted)


def check_parts(module: nn.Module, share: Share) -> None:
    """Refuse networks of which a sample is computed otherwise in a part of its batch.

    Raises:
        SettingError: batch normalisation.
    """
    reason = batch_dependence(module)
    if reason:
        accepted = f"1 is needed: {reason}, and each of {share.count} ranks would see a part"
        raise SettingError("ranks", share.count, accepted)


@contextmanager
def samples_of_rank(
    batch: LabelledBatch,
    share: Share,
    axes: tuple[int, int, int] = (0, 0, 0),
    *,
    alone: bool = False,
) -> Iterator[LabelledBatch]:
    """A block in which networks see a rank's part of a batch, which it gives.

    Masks of dropout are those of the whole batch.

    Args:
        batch: inputs, targets and, where there are some, weights.
        share: of the rank.
        axes: of the samples in each of them.
        alone: whether networks see each sample by itself, so that all have the same masks.
    """
    start, stop = share.bounds(batch[1].shape[axes[1]])
    with part_of_batch(0, 1) if alone else part_of_batch(start, stop - start):
        yield tuple(part.narrow(axis, start, stop - start) for part, axis in zip(batch, axes))


class TrainingBatches:
    """What members see at each step.

    Args:
        data: samples with targets in three splits.
        order: which samples of the training part.
        augmentation: of pictures.
        seeds: of each member's augmentation; the first one's where all see the same samples.
        device: where batches are put.
        weights: of the examples in each member's loss; None weights none.

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
        weights: ExampleWeights | None = None,
    ) -> None:
        check_augmentation(augmentation, data)
        self.data, self.order, self.augmentation = data, order, augmentation
        self.seeds, self.device, self.weights = list(seeds), device, weights

    def __call__(self, step: int) -> LabelledBatch:
        """Inputs and targets of a step, and weights where there are some."""
        indices = self.order.indices(step)
        x, y = self.data.take(indices, device=self.device)
        seeds = self.seeds if have_member_axis(y) else self.seeds[:1]
        shown = augment(x, self.augmentation, seeds=seeds, step=step), y
        return shown if self.weights is None else (*shown, self.weights.of(indices))

    @property
    def batch_size(self) -> int:
        """B."""
        return self.order.batch_size
