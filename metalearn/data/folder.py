"""Any folder of class folders of pictures.

Axes: N pictures, C classes (folders), G groups (the folders above them).
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from metalearn.data.division import check_class_fractions, divide_classes
from metalearn.data.folder_reading import FolderReading, existing_folder
from metalearn.data.folder_tree import ClassFolder, find_classes
from metalearn.data.images import LabelledImages
from metalearn.data.listed_pictures import files_identity
from metalearn.data.locations import cache_folder
from metalearn.data.packed import kept_pack
from metalearn.data.picture_files import LabelledFiles, PictureFiles
from metalearn.errors import SettingError
from metalearn.signatures import checked

__all__ = ["list_folder", "load_folder"]

_VERSION = 1  # of packs: raise it when pictures are brought to their size in another way
_log = logging.getLogger(__name__)


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
    keep: Literal["memory", "cache"] = "memory",
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
        keep: ``memory`` decodes all pictures at each call; ``cache`` once, to a file in
            ``cache_folder()`` that is mapped, so that processes of a machine share it. Other
            names, sizes or times of files make it anew.

    Returns:
        ``images`` uint8 ``[N, channels, image_size, image_size]``; names ``"class"`` with the
        group ``""``, or ``"group/class"``.

    Raises:
        SettingError: a setting that cannot work, or no folder at ``root``.
        DataError: no pictures, an empty class, unreadable pictures, too few classes.
    """
    reading = FolderReading(image_size, channels, on_corrupt, invert)
    if keep not in ("memory", "cache"):
        raise SettingError("keep", keep, "memory or cache is needed")
    root, classes, known = _listed(root, validation_fraction, test_fraction)
    if keep == "memory":
        images, labels = reading.read(root, classes)
    else:
        images, labels = _packed(root, classes, reading)
    return LabelledImages(images=images, labels=labels, **known)


@checked
def list_folder(
    root: str | Path,
    *,
    image_size: int = 84,
    channels: Literal[1, 3] = 3,
    invert: bool = False,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
) -> LabelledFiles:
    """The pictures that `load_folder` would load, decoded whenever they are asked for.

    For folders that fit neither into memory nor, decoded, on the disk. One that cannot be read is
    found when a task takes it, and refused then.

    Args:
        root: the folder.
        image_size: side of a picture in pixels.
        channels: 3 for red, green and blue, 1 for grey.
        invert: exchange bright and dark; for dark ink on light paper.
        validation_fraction: share of the classes for validation where no split is named; 0: none.
        test_fraction: share of the classes for testing; 1: all of them are test classes.

    Raises:
        SettingError: a setting that cannot work, or no folder at ``root``.
        DataError: no pictures, an empty class, too few classes.
    """
    FolderReading(image_size, channels, "refuse", invert)  # its checks
    root, classes, known = _listed(root, validation_fraction, test_fraction)
    files = [file for found in classes for file in found.files]
    counts = torch.tensor([len(found.files) for found in classes])
    return LabelledFiles(
        images=PictureFiles(root, files, size=image_size, channels=channels, invert=invert),
        labels=torch.arange(len(classes)).repeat_interleave(counts),
        **known,
    )


def _listed(
    root: str | Path, validation: float, test: float
) -> tuple[Path, list[ClassFolder], dict[str, Any]]:
    """The folder, its classes, and what is known of them."""
    check_class_fractions(validation, test)
    root = existing_folder(root)
    classes = find_classes(root)
    names, named = [c.name for c in classes], [c.split for c in classes]
    known = {
        "class_names": tuple(names),
        "class_groups": tuple(c.group for c in classes),
        "splits": divide_classes(root, names, named, validation=validation, test=test),
    }
    return root, classes, known


def _packed(
    root: Path, classes: list[ClassFolder], reading: FolderReading
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures and labels as of `FolderReading.read`, of which the pictures are mapped."""
    files = [file for found in classes for file in found.files]
    identity = files_identity(root, [file for file in files if file.exists()])  # no dead links
    place = hashlib.sha256(f"{root.resolve()} {reading}".encode(errors="replace")).hexdigest()
    path = cache_folder() / f"folder-{reading.image_size}-{place[:16]}.npz"

    def make() -> dict[str, np.ndarray[Any, Any]]:
        _log.info("%s is decoded once to %s", root, path)
        images, labels = reading.read(root, classes)
        return {"images": images.numpy(), "labels": labels.numpy()}

    arrays = kept_pack(path, f"folder {_VERSION} {reading} {identity}", make).arrays
    missing = len(files) - len(arrays["images"])
    if missing:
        said = "%s: %d of %d pictures could not be read and are left out"
        _log.warning(said, root, missing, len(files))
    return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
