"""Labelled samples of any shape in memory: rows of tables, signals, features of other networks.

Axes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.core.tree import check_tensors
from metalearn.data.labelled_classes import check_classes
from metalearn.errors import SettingError
from metalearn.reprs import labelled_line
from metalearn.signatures import check_fields, known_fields

__all__ = ["LabelledArrays"]


@known_fields
@dataclass(frozen=True)
class LabelledArrays:
    """Labelled arrays in memory, with classes named, grouped and divided into splits.

    Attributes:
        arrays: ``[N, ...]``, float32, finite.
        labels: ``[N]``, int64, the class of each sample, in 0..C-1.
        class_names: C names.
        class_groups: C names of groups that classes belong to; ``""`` where there are none.
        splits: split name to its class indices; splits share no class.

    Raises:
        SettingError: shapes, types, numbers or splits that contradict one another.
    """

    arrays: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    class_groups: tuple[str, ...]
    splits: Mapping[str, tuple[int, ...]]

    __repr__ = labelled_line

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("arrays", "labels"):
            check_tensors(getattr(self, name), name)
        if self.arrays.dtype != torch.float32 or self.arrays.ndim < 2:
            found = f"{self.arrays.dtype} {list(self.arrays.shape)}"
            raise SettingError("arrays", found, "a float32 tensor [N, ...] is needed")
        if not bool(self.arrays.isfinite().all()):
            raise SettingError("arrays", "values that are not finite", "finite numbers are needed")
        check_classes(self)

    @property
    def inputs(self) -> Tensor:
        """``arrays``, of which tasks take their inputs."""
        return self.arrays
