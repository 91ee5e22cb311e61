"""Reading the pictures of class folders, with those that cannot be read named.

Axes: N pictures, C classes (folders).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metalearn.data.folder_tree import ClassFolder
from metalearn.data.pictures import LARGEST, PictureError, decode, decode_by_area
from metalearn.errors import DataError, SettingError, check_whole
from metalearn.files import read_regular
from metalearn.stretches import stretch

__all__ = ["FolderReading", "existing_folder"]

_NAMED = 5  # unreadable files that a refusal names
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderReading:
    """How pictures are read.

    Attributes:
        image_size: side of a picture in pixels.
        channels: 3 for red, green and blue, 1 for grey.
        on_corrupt: ``refuse`` raises on unreadable pictures; ``skip`` leaves them out and logs a
            warning that names them.
        invert: exchange bright and dark.
        area: make pictures smaller by area averaging, as Omniglot's are; else by Pillow's filter.

    Raises:
        SettingError: a setting that cannot work.
    """

    image_size: int
    channels: Literal[1, 3]
    on_corrupt: Literal["refuse", "skip"]
    invert: bool
    area: bool = False

    def __post_init__(self) -> None:
        check_whole("image_size", self.image_size, 1)
        if self.channels not in (1, 3):
            raise SettingError("channels", self.channels, "1 (grey) or 3 (colour) is needed")
        if self.on_corrupt not in ("refuse", "skip"):
            raise SettingError("on_corrupt", self.on_corrupt, "refuse or skip is needed")

    def read(self, root: Path, classes: Sequence[ClassFolder]) -> tuple[Tensor, Tensor]:
        """Pictures uint8 ``[N, channels, image_size, image_size]`` and labels int64 ``[N]``.

        Label c stands for ``classes[c]``; pictures are in the order of classes and files.

        Raises:
            DataError: unreadable pictures, or a class without readable ones.
        """
        size, channels = self.image_size, self.channels
        shrink = decode_by_area if self.area else decode
        count = sum(len(folder.files) for folder in classes)
        images = np.empty((count, channels, size, size), np.uint8)
        labels: list[int] = []
        faults: list[str] = []
        with warnings.catch_warnings(), stretch(f"reading {root.name}", count, "pictures") as tell:
            # Pillow warns of odd but readable files (huge pictures, damaged metadata).
            warnings.simplefilter("ignore")
            for label, folder in enumerate(classes):
                for file in folder.files:
                    tell(1)
                    try:
                        pixels = shrink(read_regular(file, LARGEST), channels, size)
                    except (OSError, PictureError) as error:
                        faults.append(f"{file.relative_to(root)} ({error})")
                        continue
                    images[len(labels)] = pixels.reshape(size, size, channels).transpose(2, 0, 1)
                    labels.append(label)
        if faults:
            _report(root, faults, self.on_corrupt)
        for label in sorted(set(range(len(classes))) - set(labels)):
            raise DataError(f"{root}: no picture of the class {classes[label].name} can be read")
        images = images[: len(labels)]
        return torch.from_numpy(255 - images if self.invert else images), torch.tensor(labels)


def existing_folder(root: str | Path) -> Path:
    """The folder at ``root``, ``~`` expanded.

    Raises:
        SettingError: there is none.
    """
    if not str(root):
        raise SettingError("root", "", "a folder of class folders is needed")
    root = Path(root).expanduser()
    if not root.is_dir():
        there = "it is a file" if root.exists() else "nothing is there"
        raise SettingError("root", str(root), f"{there}; a folder of class folders is needed")
    return root


def _report(root: Path, faults: list[str], on_corrupt: str) -> None:
    count = "1 file" if len(faults) == 1 else f"{len(faults)} files"
    if on_corrupt == "refuse":
        more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        named = ", ".join(faults[:_NAMED]) + more
        raise DataError(
            f"{root}: {count} cannot be read as a picture: {named}; mend or remove what is "
            "damaged, or set on_corrupt=skip to leave it out"
        )
    _log.warning(
        "%s: %s cannot be read as a picture and left out: %s", root, count, ", ".join(faults)
    )
