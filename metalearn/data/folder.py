"""Any folder of class folders of pictures.

Axes: N pictures, C classes (folders), G groups (the folders above them).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from metalearn.data.division import check_class_fractions, divide_classes
from metalearn.data.folder_reading import FolderReading, existing_folder
from metalearn.data.folder_tree import find_classes
from metalearn.data.images import LabelledImages
from metalearn.signatures import checked

__all__ = ["load_folder"]


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
        validation_fraction: share of the classes for validation where no split is named; 0: none.
        test_fraction: share of the classes for testing; 1: all of them are test classes.

    Returns:
        ``images`` uint8 ``[N, channels, image_size, image_size]``; names ``"class"`` with the
        group ``""``, or ``"group/class"``.

    Raises:
        SettingError: a setting that cannot work, or no folder at ``root``.
        DataError: no pictures, an empty class, unreadable pictures, too few classes.
    """
    reading = FolderReading(image_size, channels, on_corrupt, invert)
    check_class_fractions(validation_fraction, test_fraction)
    root = existing_folder(root)
    classes = find_classes(root)
    splits = divide_classes(
        root,
        [c.name for c in classes],
        [c.split for c in classes],
        validation=validation_fraction,
        test=test_fraction,
    )
    images, labels = reading.read(root, classes)
    return LabelledImages(
        images=images,
        labels=labels,
        class_names=tuple(c.name for c in classes),
        class_groups=tuple(c.group for c in classes),
        splits=splits,
    )
