"""Checksums of data and tensors in memory, so that a result can tell what it was found on.

Axes: N samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metalearn.data.arrays import LabelledArrays
from metalearn.data.classification import ClassificationData
from metalearn.data.images import LabelledImages
from metalearn.data.picture_files import LabelledFiles
from metalearn.data.regression import RegressionData
from metalearn.data.texts import LabelledTexts

__all__ = ["data_checksum", "tensors_checksum"]

_SETS = (
    ClassificationData, LabelledArrays, LabelledFiles, LabelledImages, LabelledTexts,
    RegressionData,
)  # fmt: skip
_ROWS = 4096  # samples at a time: a memory-mapped array is not read whole


def data_checksum(data: object) -> str | None:
    """SHA-256 of all samples, targets, names and splits; None of anything but this room's sets.

    It depends on values, types and shapes, and neither on the device nor on where data came from.
    Of pictures that stay in their files it has names and sizes of the files in place of values.
    """
    if not isinstance(data, _SETS):
        return None
    digest = hashlib.sha256()
    for name, value in vars(data).items():
        if not name.startswith("_"):
            _add(digest, name, value)
    return digest.hexdigest()


def tensors_checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors by name, in whatever order they are given."""
    digest = hashlib.sha256()
    _add(digest, "", tensors)
    return digest.hexdigest()


def _add(digest: Any, name: str, value: Any) -> None:
    """Take in a field under its name, with all that says how its bytes are to be read."""
    if isinstance(value, Mapping):
        for key in sorted(value):
            _add(digest, f"{name}/{key}", value[key])
        return
    if not isinstance(value, Tensor):
        digest.update(f"{name} {value!r}\n".encode())
        return
    digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
    whole = value.detach() if value.dim() else value.detach().view(1)
    for rows in torch.split(whole, _ROWS):
        flat = rows.cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
