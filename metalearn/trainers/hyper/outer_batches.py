"""Which validation samples shape runs, and which score them.

Axes: N samples of the outer loss's half, B samples of a batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metalearn.data import Augmentation, MemberBatches
from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError, check_whole
from metalearn.trainers.supervised.batches import TrainingBatches

__all__ = ["divided_validation", "outer_batches"]


def divided_validation(data: SupervisedData) -> tuple[Tensor, SupervisedData]:
    """The samples of the outer loss, and the data with the other half as their validation part.

    Every other validation sample of each class, in the order in which they stand, is in the outer
    loss; of real targets every other sample.

    Raises:
        SettingError: fewer than two validation samples.
    """
    samples = data.splits["validation"]
    if len(samples) < 2:
        accepted = "at least two samples are needed, one for the outer loss and one to choose by"
        raise SettingError("data.splits['validation']", len(samples), accepted)
    if data.kind == "classification":
        samples = samples[torch.argsort(data.targets[samples], stable=True)]
    outer, chosen_by = samples[::2].sort().values, samples[1::2].sort().values
    splits: Any = {**data.splits, "validation": chosen_by}
    return outer, replace(data, splits=splits)


def outer_batches(
    data: SupervisedData, samples: Tensor, size: int | None, seed: int, device: torch.device
) -> TrainingBatches:
    """By outer step, so many of the samples of the outer loss; None is all of them, each time.

    Raises:
        SettingError: more than there are.
    """
    if size is not None:
        check_whole("outer_batch", size, 1)
        if size > len(samples):
            accepted = f"null is needed, or at most {len(samples)}, half of the validation part"
            raise SettingError("outer_batch", size, accepted)
    count = len(samples) if size is None else size
    order = MemberBatches(samples, batch_size=count, seeds=[seed], shuffle=size is not None)
    return TrainingBatches(data, order, Augmentation(), [seed], device)
