"""Any folder of class folders of pictures.

Axes: N pictures, C classes (folders), G groups (the folders above them).
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from metalearn.data.folder_tree import ClassFolder, find_classes
from metalearn.data.images import LabelledImages
from metalearn.data.pictures import PictureError, Pixels, decode
from metalearn.errors import DataError, SettingError

__all__ = ["load_folder"]

_LEAST = 2  # classes of a split: a task tells at least two apart
_NAMED = 5  # unreadable files that a refusal names
_log = logging.getLogger(__name__)


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
    lead back to a folder above are passed over. Classes and files are sorted by name.

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
    _check_settings(image_size, channels, on_corrupt, validation_fraction, test_fraction)
    root = Path(root).expanduser()
    if not root.is_dir():
        there = "it is a file" if root.exists() else "nothing is there"
        raise SettingError("root", str(root), f"{there}; a folder of class folders is needed")
    classes = find_classes(root)
    splits = _divide(root, classes, validation_fraction, test_fraction)
    images, labels = _read(root, classes, image_size, channels, on_corrupt)
    return LabelledImages(
        images=torch.from_numpy(255 - images if invert else images),
        labels=torch.tensor(labels, dtype=torch.int64),
        class_names=tuple(c.name for c in classes),
        class_groups=tuple(c.group for c in classes),
        splits=splits,
    )


def _check_settings(
    image_size: int, channels: int, on_corrupt: str, validation: float, test: float
) -> None:
    if type(image_size) is not int or image_size < 1:
        raise SettingError("image_size", image_size, "a whole number of at least 1 is needed")
    if channels not in (1, 3):
        raise SettingError("channels", channels, "1 (grey) or 3 (colour) is needed")
    if on_corrupt not in ("refuse", "skip"):
        raise SettingError("on_corrupt", on_corrupt, "refuse or skip is needed")
    for setting, value in (("validation_fraction", validation), ("test_fraction", test)):
        if not 0 < value < 1:
            raise SettingError(setting, value, "a number between 0 and 1 is needed")
    if validation + test >= 1:
        accepted = f"with validation_fraction={validation} the sum must stay below 1"
        raise SettingError("test_fraction", test, accepted)


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
            range(len(classes)), key=lambda i: hashlib.sha256(classes[i].name.encode()).digest()
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


def _read(
    root: Path, classes: list[ClassFolder], size: int, channels: Literal[1, 3], on_corrupt: str
) -> tuple[Pixels, list[int]]:
    """``[N, channels, size, size]`` and the N labels of all pictures that can be read."""
    images = np.empty((sum(len(c.files) for c in classes), channels, size, size), np.uint8)
    labels: list[int] = []
    faults: list[str] = []
    with warnings.catch_warnings():
        # Pillow warns of odd but readable files (huge pictures, damaged metadata).
        warnings.simplefilter("ignore")
        for label, folder in enumerate(classes):
            for file in folder.files:
                try:
                    pixels = decode(file.read_bytes(), channels, size)
                except (OSError, PictureError) as error:
                    faults.append(f"{file.relative_to(root)} ({error})")
                    continue
                images[len(labels)] = pixels.reshape(size, size, channels).transpose(2, 0, 1)
                labels.append(label)
    if faults:
        _report(root, faults, on_corrupt)
    for label in sorted(set(range(len(classes))) - set(labels)):
        raise DataError(f"{root}: no picture of the class {classes[label].name} can be read")
    return images[: len(labels)], labels


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
