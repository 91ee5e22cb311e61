"""Any folder of class folders of pictures.

Axes: N pictures, C classes (folders), G groups (the folders above them).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

from metalearn.data.division import check_fractions
from metalearn.data.folder_reading import FolderReading, existing_folder
from metalearn.data.folder_tree import ClassFolder, find_classes
from metalearn.data.images import LabelledImages
from metalearn.errors import DataError
from metalearn.signatures import checked

__all__ = ["load_folder"]

_LEAST = 2  # classes of a split: a task tells at least two apart


@checked
def load_folder(
    root: str | Path,
    *,
    image_size: int = 84,
    channels: Literal[1, 3] = 3,
    on_corrupt: Literal["refuse", "skip"] = "refuse",
    invert: bool = False,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
) -> LabelledImages:
    """Pictures of ``root/class/*`` or ``root/group/class/*``, with the classes divided in splits.

    The largest centred square of each picture is brought to ``image_size``. Read are png, jpg,
    jpeg, bmp, webp, gif (its first frame), tif and tiff; hidden files, other files and links that
    lead back to a folder above are passed over. Pipes and devices, files of more than 64 MiB and
    pictures of more than 50 million pixels count as unreadable. Classes and files are sorted by
    name.

    With subfolders train, validation (or val) and test those are the splits, and each holds class
    folders. Otherwise classes are put in the order of the SHA-256 of their names, the same on any
    machine: first come ``round(fraction * C)`` test classes, at least 2, then as many by the same
    rule for validation; the rest is for training.

    Args:
        root: the folder.
        image_size: side of a picture in pixels.
        channels: 3 for red, green and blue, 1 for grey.
        on_corrupt: ``refuse`` raises on unreadable pictures; ``skip`` leaves them out and logs a
            warning that names them.
        invert: exchange bright and dark; for dark ink on light paper.
        validation_fraction: share of the classes for validation; not used with named splits.
        test_fraction: share of the classes for testing; not used with named splits.

    Returns:
        ``images`` uint8 ``[N, channels, image_size, image_size]``; names ``"class"`` with the
        group ``""``, or ``"group/class"``.

    Raises:
        SettingError: a setting that cannot work, or no folder at ``root``.
        DataError: no pictures, an empty class, unreadable pictures, too few classes.
    """
    reading = FolderReading(image_size, channels, on_corrupt, invert)
    check_fractions(validation_fraction, test_fraction)
    root = existing_folder(root)
    classes = find_classes(root)
    splits = _divide(root, classes, validation_fraction, test_fraction)
    images, labels = reading.read(root, classes)
    return LabelledImages(
        images=images,
        labels=labels,
        class_names=tuple(c.name for c in classes),
        class_groups=tuple(c.group for c in classes),
        splits=splits,
    )


def _divide(
    root: Path, classes: list[ClassFolder], validation: float, test: float
) -> dict[str, tuple[int, ...]]:
    """Split name to its classes, sorted; named folders first, else the order of the hashes."""
    if classes[0].split:
        parts = {
            split: tuple(i for i, c in enumerate(classes) if c.split == split)
            for split in ("train", "validation", "test")
        }
    else:
        order = sorted(
            range(len(classes)), key=lambda i: hashlib.sha256(os.fsencode(classes[i].name)).digest()
        )
        first = max(_LEAST, round(test * len(classes)))
        second = first + max(_LEAST, round(validation * len(classes)))
        parts = {
            "train": tuple(sorted(order[second:])),
            "validation": tuple(sorted(order[first:second])),
            "test": tuple(sorted(order[:first])),
        }
    for split, chosen in parts.items():
        if len(chosen) < _LEAST:
            raise DataError(
                f"{root}: {len(classes)} classes leave {len(chosen)} for {split}; each of train, "
                f"validation and test needs at least {_LEAST}, {3 * _LEAST} classes in all"
            )
    return parts
