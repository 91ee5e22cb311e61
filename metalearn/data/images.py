"""One array interface for every source of labelled pictures.

Axes: N pictures, C classes, G groups (alphabets, scripts), [channels, height, width] of a picture.
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

__all__ = ["LabelledImages"]


@known_fields
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

    __repr__ = labelled_line

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("images", "labels"):
            check_tensors(getattr(self, name), name)
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            needed = "a uint8 tensor [N, channels, height, width] is needed"
            found = f"{self.images.dtype} {list(self.images.shape)}"
            raise SettingError("images", found, needed)
        check_classes(self)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)``."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def inputs(self) -> Tensor:
        """``images``, of which tasks take their inputs."""
        return self.images
