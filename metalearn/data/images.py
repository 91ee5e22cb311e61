"""One array interface for every source of labelled pictures.

Axes: N pictures, C classes, G groups (alphabets, scripts), [channels, height, width] of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.core.tree import check_tensors
from metalearn.errors import SettingError
from metalearn.signatures import check_fields

__all__ = ["LabelledImages"]


@dataclass(frozen=True)
class LabelledImages:
    """Labelled pictures in memory, with classes named, grouped and divided into splits.

    Attributes:
        images: ``[N, channels, height, width]``, uint8, ink bright on a dark (0) ground.
        labels: ``[N]``, int64, the class of each picture, in 0..C-1.
        class_names: C names, ``"Greek/character01"``.
        class_groups: C names, the alphabet or script that each class belongs to.
        splits: split name to its class indices; splits share no class.

    Raises:
        SettingError: shapes, types or splits that contradict one another.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    class_groups: tuple[str, ...]
    splits: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("images", "labels"):
            check_tensors(getattr(self, name), name)
        images, labels, count = self.images, self.labels, len(self.class_names)
        if images.dtype != torch.uint8 or images.ndim != 4:
            needed = "a uint8 tensor [N, channels, height, width] is needed"
            raise SettingError("images", f"{images.dtype} {list(images.shape)}", needed)
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            needed = f"an int64 tensor [{len(images)}] is needed"
            raise SettingError("labels", f"{labels.dtype} {list(labels.shape)}", needed)
        if len(self.class_groups) != count:
            needed = f"{count} names are needed, one a class"
            raise SettingError("class_groups", len(self.class_groups), needed)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < count:
            found = f"{int(labels.min())}..{int(labels.max())}"
            raise SettingError("labels", found, f"classes lie in 0..{count - 1}")
        self._check_splits(count)

    def _check_splits(self, count: int) -> None:
        seen: set[int] = set()
        for name, classes in self.splits.items():
            where = f"splits[{name!r}]"
            if seen & set(classes) or len(set(classes)) != len(classes):
                raise SettingError(where, classes, "a class stands twice; once is accepted")
            if not all(0 <= c < count for c in classes):
                raise SettingError(where, classes, f"classes lie in 0..{count - 1}")
            seen |= set(classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)``."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width
