"""CIFAR-FS and FC100: the pictures of CIFAR-100, with classes divided for few-shot tasks.

Axes: N = 60000 pictures, C = 100 classes in 20 superclasses.
"""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalearn.data.downloads import RemoteFile, fetched
from metalearn.data.images import LabelledImages
from metalearn.data.known_splits import CIFAR100_SUPERCLASSES, CIFAR_FS, FC100, ClassSplits
from metalearn.data.locations import data_folder
from metalearn.data.pictures import Pixels, area_average
from metalearn.errors import DataError, SettingError, check_whole
from metalearn.files import check_regular, read_regular
from metalearn.signatures import checked

__all__ = ["load_cifar_fs", "load_fc100"]

ARCHIVE = RemoteFile(
    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    "md5:03b5dce01913d631647c71ecec9e9cb8",
    largest=2**28,
)
_FOLDER = "cifar-100-binary"
_PARTS = ("train.bin", "test.bin")
_SIDE = 32
_RECORD = 2 + 3 * _SIDE * _SIDE  # superclass, class, and the pixels red, green, blue
_LARGEST = 2**28  # bytes of a part; that of training has 154 million
_LARGEST_SIDE = 256
_AT_ONCE = 2000  # pictures resized together
_UNREADABLE = (OSError, EOFError, ValueError, OverflowError, tarfile.TarError, zlib.error)


@checked
def load_cifar_fs(
    root: str | Path | None = None, *, image_size: int = _SIDE, download: bool = True
) -> LabelledImages:
    """CIFAR-FS: 64 training, 16 validation and 20 test classes of CIFAR-100, 600 pictures each.

    Read is the official binary archive, whose records are plain bytes; that of Python is a pickle.
    Classes are sorted by name, and the pictures of a class are those of the official training part
    and behind them those of the test part.

    Args:
        root: cifar-100-binary.tar.gz, the folder that has it, or what it unpacks to. None:
            ``data_folder()``.
        image_size: side of a picture in pixels, 1 to 256: the 32 of the originals, or an exact area
            average of them.
        download: fetch the archive (161 MiB) into ``data_folder()`` where there is none.

    Returns:
        ``images`` uint8 ``[60000, 3, image_size, image_size]``, groups = superclasses.

    Raises:
        SettingError: a setting that cannot work, or nothing at ``root``.
        DataError: the set is incomplete, damaged, or cannot be had.

    Source: Bertinetto, Henriques, Torr and Vedaldi, "Meta-learning with differentiable closed-form
    solvers", ICLR 2019.
    """
    return _load(CIFAR_FS, root, image_size, download)


@checked
def load_fc100(
    root: str | Path | None = None, *, image_size: int = _SIDE, download: bool = True
) -> LabelledImages:
    """FC100: the classes of 12, 4 and 4 superclasses of CIFAR-100, so that splits are unlike.

    60 classes are for training, 20 for validation and 20 for the test; the rest is as
    `load_cifar_fs` has it.

    Args:
        root: cifar-100-binary.tar.gz, the folder that has it, or what it unpacks to. None:
            ``data_folder()``.
        image_size: side of a picture in pixels, 1 to 256.
        download: fetch the archive (161 MiB) into ``data_folder()`` where there is none.

    Returns:
        ``images`` uint8 ``[60000, 3, image_size, image_size]``, groups = superclasses.

    Raises:
        SettingError: a setting that cannot work, or nothing at ``root``.
        DataError: the set is incomplete, damaged, or cannot be had.

    Source: Oreshkin, Rodríguez López and Lacoste, "TADAM", NeurIPS 2018.
    """
    return _load(FC100, root, image_size, download)


def _load(
    split_names: ClassSplits, root: str | Path | None, size: int, allowed: bool
) -> LabelledImages:
    check_whole("image_size", size, 1, _LARGEST_SIDE)
    group_of = {c: group for group, classes in CIFAR100_SUPERCLASSES.items() for c in classes}
    names = tuple(sorted(group_of))
    groups = tuple(group_of[name] for name in names)
    source = _find(data_folder() if root is None else Path(root).expanduser())
    if source is None and root is not None:
        raise SettingError("root", str(root), f"{_FOLDER}.tar.gz or a folder with it is needed")
    if source is None:
        archive = data_folder() / f"{_FOLDER}.tar.gz"
        source = fetched(ARCHIVE, archive, title="CIFAR-100", allowed=allowed)
    records = _records(source, names, groups)
    labels = torch.from_numpy(records[:, 1].astype(np.int64))
    pixels = records[:, 2:].reshape(-1, 3, _SIDE, _SIDE)
    return LabelledImages(
        images=torch.from_numpy(_resized(pixels, size)),
        labels=labels,
        class_names=names,
        class_groups=groups,
        splits={s: tuple(names.index(c) for c in chosen) for s, chosen in split_names.items()},
    )


def _find(place: Path) -> Path | None:
    """The archive, or the folder with both parts, at a place or below it."""
    if place.is_file():
        return place
    for folder in (place / _FOLDER, place):
        if all((folder / part).is_file() for part in _PARTS):
            return folder
    archive = place / f"{_FOLDER}.tar.gz"
    return archive if archive.is_file() else None


def _records(source: Path, names: tuple[str, ...], groups: tuple[str, ...]) -> Pixels:
    """Records ``[N, 3074]``: superclass, class and pixels, in the order of classes."""
    groups_in_order = list(CIFAR100_SUPERCLASSES)
    expected = np.array([groups_in_order.index(group) for group in groups])
    found = []
    for part, data in _parts(source).items():
        if not data or len(data) % _RECORD:
            reason = f"{len(data)} bytes are no whole number of records of {_RECORD}"
            raise DataError(f"{source}: {part} is cut short: {reason}")
        records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD)
        if records[:, 1].max() >= len(names) or (expected[records[:, 1]] != records[:, 0]).any():
            raise DataError(f"{source}: {part} has classes that CIFAR-100 does not have")
        counts = np.bincount(records[:, 1], minlength=len(names))
        if counts.min() != counts.max():
            least, most = names[int(counts.argmin())], names[int(counts.argmax())]
            reason = f"{counts.min()} pictures of {least} and {counts.max()} of {most}"
            raise DataError(f"{source}: {part} is cut short: {reason}; of each there are as many")
        found.append(records)
    together = np.concatenate(found)
    return together[np.argsort(together[:, 1], kind="stable")]


def _parts(source: Path) -> dict[str, bytes]:
    """The bytes of both parts, from the folder or out of the archive."""
    try:
        if source.is_dir():
            return {part: read_regular(source / part, _LARGEST) for part in _PARTS}
        check_regular(source, ARCHIVE.largest)
        with tarfile.open(source, "r:gz") as archive:
            return {part: _member(archive, f"{_FOLDER}/{part}") for part in _PARTS}
    except _UNREADABLE as error:
        raise DataError(
            f"{source} cannot be read ({error}): remove it and fetch the official "
            f"{_FOLDER}.tar.gz again"
        ) from error


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        member = archive.getmember(name)
    except KeyError:
        raise tarfile.TarError(f"{name} is missing in it") from None
    if not member.isreg() or member.size > _LARGEST:
        raise tarfile.TarError(f"{name} in it is no file of at most {_LARGEST} bytes")
    file: Any = archive.extractfile(member)
    data: bytes = file.read()
    return data


def _resized(pixels: Pixels, size: int) -> Pixels:
    """``[N, 3, S, S]`` to ``[N, 3, size, size]``."""
    if size == _SIDE:
        return np.ascontiguousarray(pixels)
    small = np.empty((len(pixels), 3, size, size), np.uint8)
    for first in range(0, len(pixels), _AT_ONCE):
        part = pixels[first : first + _AT_ONCE]
        flat = area_average(part.reshape(-1, _SIDE, _SIDE), size)
        small[first : first + _AT_ONCE] = flat.reshape(len(part), 3, size, size)
    return small
