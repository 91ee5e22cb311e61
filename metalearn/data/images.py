"""One array interface for every source of labelled pictures.

Axes: N pictures, C classes, G groups (alphabets, scripts), [channels, height, width] of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

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
        ValueError: shapes, types or splits that contradict one another.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    class_groups: tuple[str, ...]
    splits: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                "images: a uint8 tensor [N, channels, height, width] is needed, "
                f"got {self.images.dtype} {list(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels: an int64 tensor [{len(self.images)}] is needed, "
                f"got {self.labels.dtype} {list(self.labels.shape)}"
            )
        count = len(self.class_names)
        if len(self.class_groups) != count:
            raise ValueError(f"class_groups: {count} names are needed, one a class")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < count:
            raise ValueError(f"labels: classes lie in 0..{count - 1}")
        seen: set[int] = set()
        for name, classes in self.splits.items():
            if seen & set(classes) or len(set(classes)) != len(classes):
                raise ValueError(f"splits[{name!r}]: a class stands twice")
            if not all(0 <= c < count for c in classes):
                raise ValueError(f"splits[{name!r}]: classes lie in 0..{count - 1}")
            seen |= set(classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)``."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width
