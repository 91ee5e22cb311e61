"""Which targets a score takes.

Axes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metalearn.core.tree import check_tensors
from metalearn.errors import SettingError

__all__ = ["check_class_targets", "check_sample_targets"]


def check_sample_targets(targets: Tensor, *, samples: int, classes: int) -> None:
    """Refuse what is not one class index in 0..classes−1 for each sample.

    Raises:
        SettingError: says what is wrong.
    """
    check_class_targets(targets, (samples,), classes)


def check_class_targets(targets: Tensor, shape: Sequence[int], classes: int) -> None:
    """Refuse what is not one class index in 0..classes−1 for each sample of ``shape [..., N]``.

    Raises:
        SettingError: says what is wrong.
    """
    check_tensors(targets, "targets")
    if targets.shape != tuple(shape):
        accepted = f"{list(shape)} is needed, one class for each sample"
        raise SettingError("shape of targets", list(targets.shape), accepted)
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise SettingError("dtype of targets", str(targets.dtype), "whole numbers are needed")
    wrong = targets[(targets < 0) | (targets >= classes)]
    if len(wrong):
        raise SettingError("target", int(wrong[0]), f"a class in 0..{classes - 1} is needed")
