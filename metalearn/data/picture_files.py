"""Pictures that stay in their files, and are decoded each time a task takes them.

Axes: N pictures, C classes, [channels, size, size] of a picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metalearn.data.labelled_classes import check_classes
from metalearn.data.pictures import LARGEST, PictureError, decode
from metalearn.errors import DataError
from metalearn.files import read_regular
from metalearn.reprs import labelled_line
from metalearn.signatures import check_fields, known_fields

__all__ = ["LabelledFiles", "PictureFiles"]


class PictureFiles:
    """N pictures in files, which read like a tensor uint8 ``[N, channels, size, size]``.

    Nothing is kept of what is read, so that any number of threads may read at once. Pillow lets go
    of Python's lock while it decodes, so that threads decode side by side.

    Args:
        root: the folder, for messages.
        files: of the pictures.
        size: side of a picture in pixels.
        channels: 3 for red, green and blue, 1 for grey.
        invert: exchange bright and dark.
    """

    dtype = torch.uint8
    device = torch.device("cpu")

    def __init__(
        self,
        root: Path,
        files: Sequence[Path],
        *,
        size: int,
        channels: Literal[1, 3],
        invert: bool = False,
    ) -> None:
        self.root, self.files, self.invert = root, tuple(files), invert
        self._size, self._channels = size, channels
        self.shape = torch.Size((len(files), channels, size, size))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Pictures ``rows``: uint8 ``[..., channels, size, size]``, ``...`` the shape of the rows.

        Raises:
            DataError: a picture that cannot be read, or is none.
        """
        numbers = np.arange(len(self))[rows] if isinstance(rows, slice) else rows.cpu().numpy()
        once, places = np.unique(numbers, return_inverse=True)
        pixels = np.empty((len(once), *self.shape[1:]), np.uint8)
        for row, number in enumerate(once):
            pixels[row] = self._decoded(self.files[number])
        return torch.from_numpy(pixels[places.reshape(numbers.shape)])

    def __repr__(self) -> str:
        """All that pictures follow from, but for what stands in the files: names and sizes."""
        digest = hashlib.sha256(f"{tuple(self.shape)} {self.invert}\n".encode())
        for file in self.files:
            name = file.relative_to(self.root).as_posix()
            size = file.stat().st_size if file.exists() else None  # a dead link
            digest.update(f"{name} {size}\n".encode(errors="replace"))
        return f"PictureFiles({digest.hexdigest()})"

    def dim(self) -> int:
        """4."""
        return len(self.shape)

    def is_floating_point(self) -> bool:
        """False: pixels are bytes."""
        return False

    @property
    def nbytes(self) -> int:
        """What all of them would take in memory."""
        return self.shape.numel()

    def _decoded(self, file: Path) -> np.ndarray:
        try:
            pixels = decode(read_regular(file, LARGEST), self._channels, self._size)
        except (OSError, PictureError) as error:
            raise DataError(
                f"{self.root}: {file.relative_to(self.root)} cannot be read as a picture ({error})"
            ) from error
        planes: np.ndarray = pixels.reshape(*self.shape[2:], self._channels).transpose(2, 0, 1)
        return 255 - planes if self.invert else planes


@known_fields
@dataclass(frozen=True)
class LabelledFiles:
    """Labelled pictures in files, with classes named, grouped and divided into splits.

    Attributes:
        images: of N files.
        labels: ``[N]``, int64, the class of each picture, in 0..C-1.
        class_names: C names.
        class_groups: C names, the group that each class belongs to.
        splits: split name to its class indices; splits share no class.

    Raises:
        SettingError: numbers or splits that contradict one another.
    """

    images: PictureFiles
    labels: Tensor
    class_names: tuple[str, ...]
    class_groups: tuple[str, ...]
    splits: Mapping[str, tuple[int, ...]]

    __repr__ = labelled_line

    def __post_init__(self) -> None:
        check_fields(self)
        check_classes(self)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)``."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def inputs(self) -> PictureFiles:
        """``images``, of which tasks take their inputs."""
        return self.images
