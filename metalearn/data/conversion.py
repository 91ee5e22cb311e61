"""Data sets converted once to one array of bytes on the disk, which is mapped, not read.

Axes: N pictures, sorted by class, [channels = 3, size, size] of a picture.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from metalearn.data.images import LabelledImages
from metalearn.data.listed_pictures import ListedPictures, PictureSource
from metalearn.data.made_once import made_once
from metalearn.data.mapped import check_machine, mapped
from metalearn.data.pictures import LARGEST, PictureError, decode
from metalearn.errors import DataError
from metalearn.files import UNREADABLE_ARRAYS, read_regular, replace_file
from metalearn.schema import list_of, map_of, mapping, text, whole
from metalearn.stretches import stretch

__all__ = ["ClassTable", "any_converted", "converted"]

_VERSION = 1  # raise it when pictures are brought to their size in another way
_LARGEST_HEADER = 2**24
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassTable:
    """Classes in the order of their labels.

    Attributes:
        names: of the classes.
        groups: of the classes.
        splits: split to its classes.
        labels: the label of each listed picture; −1 leaves it out.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    splits: Mapping[str, tuple[int, ...]]
    labels: np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class _Header:
    """What is written beside the array.

    ``pictures`` is the checksum of all encoded ones, ``array`` that of the array's file, which is
    looked at again where that has not the size and the time (ns) that it was written with.
    """

    version: int
    source: str
    size: int
    names: list[str]
    groups: list[str]
    splits: dict[str, list[int]]
    counts: list[int]
    pictures: str
    array: str
    bytes: int
    time: int


_KIND = mapping(
    {
        "version": whole(),
        "source": text,
        "size": whole(1),
        "names": list_of(text),
        "groups": list_of(text),
        "splits": map_of(text, list_of(whole())),
        "counts": list_of(whole()),
        "pictures": text,
    },
    {"array": text, "bytes": whole(), "time": whole()},  # headers of before have none
)


def converted(
    name: str,
    source: PictureSource,
    classes: Callable[[ListedPictures], ClassTable],
    *,
    size: int,
    folder: Path,
) -> LabelledImages:
    """The pictures of a source in one size, from a file that is made at the first call.

    ``<name>-<size>-<source>.npy`` has all pictures, ``.json`` beside it the classes, the splits and
    the checksums; both are written whole or not at all, by one process while others wait. The
    largest centred square of a picture is brought to ``size``, in three channels. The array is
    mapped into memory: pages are read from the disk when a task needs them, processes of a machine
    share them, and what is written to it is written nowhere.

    Args:
        name: of the data set.
        source: the pictures; other files, sizes or times there make another conversion.
        classes: says what classes the listed pictures have, and refuses what is not the data set.
        size: side of a picture in pixels.
        folder: of the conversions.

    Raises:
        DataError: a picture that cannot be read, a folder that cannot be written to, or a machine
            that has no room to map the array.
    """
    identity = source.identity()
    path = folder / f"{name}-{size}-{identity[:16]}.npy"

    def make() -> LabelledImages:
        _log.info("%s is converted once to %s", source.place, path)
        listed = source.listed()
        try:
            _convert(path, listed, classes(listed), size, identity, source.place)
        except OSError as error:
            raise DataError(
                f"{path} cannot be written ({error.strerror or error}): set METALEARN_CACHE to a "
                "folder with room for it"
            ) from error
        data = _opened(path, size)
        if data is None:
            raise DataError(f"{path} cannot be read back")
        return data

    return made_once(path.with_suffix(".json"), lambda: _opened(path, size), make)


def any_converted(name: str, size: int, folder: Path) -> LabelledImages | None:
    """A conversion that was made earlier, the newest, whose source may be gone."""
    found = sorted(folder.glob(f"{name}-{size}-*.npy"), key=lambda path: path.stat().st_mtime)
    for path in reversed(found):
        data = _opened(path, size)
        if data is not None:
            return data
    return None


def _opened(path: Path, size: int) -> LabelledImages | None:
    """A conversion, or None where there is none or a damaged one."""
    try:
        header = json.loads(read_regular(path.with_suffix(".json"), _LARGEST_HEADER))
        _KIND(header, "")
        if header["version"] != _VERSION or header["size"] != size:
            return None
        if path.stem.rpartition("-")[2] != header["source"][:16]:
            raise ValueError("its header is of another source")
        _check_array(path, header)
        counts = header["counts"]
        images = _mapped(path, (sum(counts), 3, size, size))
        return LabelledImages(
            images=torch.from_numpy(images),
            labels=torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
            class_names=tuple(header["names"]),
            class_groups=tuple(header["groups"]),
            splits={split: tuple(chosen) for split, chosen in header["splits"].items()},
        )
    except FileNotFoundError:
        return None
    except UNREADABLE_ARRAYS as error:
        check_machine(path, error)
        _log.warning("%s is damaged and is made again: %s", path, error)
        return None


def _mapped(path: Path, wanted: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The array of a conversion, which has to be of bytes and of this shape."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"its array is of version {version}")
        shape, by_columns, kind = np.lib.format.read_array_header_1_0(file)
        if kind != np.uint8 or shape != wanted or by_columns:
            raise ValueError(f"its array is {kind} {shape}")
        return mapped(file, file.tell(), shape)


def _check_array(path: Path, header: Mapping[str, Any]) -> None:
    """Refuse an array that is not the one that was written, or one that was changed.

    The time of one that was only touched or copied is noted, so that it is read once.
    """
    known = tuple(header.get(name) for name in ("array", "bytes", "time"))
    found = path.stat()
    if None not in known and known[1:] != (found.st_size, found.st_mtime_ns):
        if found.st_size == known[1]:
            _log.info("%s has another time than when it was written: it is read once", path)
        if found.st_size != known[1] or _digest(path) != known[0]:
            raise ValueError("its checksum does not fit")
        written = json.dumps({**header, "time": found.st_mtime_ns}).encode()
        with suppress(OSError):  # it is read again the next time
            replace_file(path.with_suffix(".json"), lambda file: file.write(written))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _convert(
    path: Path, listed: ListedPictures, table: ClassTable, size: int, identity: str, place: Path
) -> None:
    rows = _rows(listed, table)
    counts = np.bincount(table.labels[table.labels >= 0], minlength=len(table.names))
    digest = hashlib.sha256()

    def write(file: IO[bytes]) -> None:
        shape = (int(counts.sum()), 3, size, size)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        start, each = file.tell(), 3 * size * size
        what = f"converting {path.name}"
        with warnings.catch_warnings(), stretch(what, len(rows), "pictures") as tell:
            warnings.simplefilter("ignore")  # Pillow warns of odd but readable files
            for number, data in listed.encoded():
                tell(1)
                if rows[number] < 0:
                    continue
                digest.update(hashlib.sha256(data).digest())
                file.seek(start + int(rows[number]) * each)
                file.write(_pixels(place, listed.names[number], data, size))

    replace_file(path, write)
    found = path.stat()
    header = _Header(
        version=_VERSION,
        source=identity,
        size=size,
        names=list(table.names),
        groups=list(table.groups),
        splits={split: list(chosen) for split, chosen in table.splits.items()},
        counts=counts.tolist(),
        pictures=digest.hexdigest(),
        array=_digest(path),
        bytes=found.st_size,
        time=found.st_mtime_ns,
    )
    written = json.dumps(asdict(header)).encode()
    replace_file(path.with_suffix(".json"), lambda file: file.write(written))


def _rows(listed: ListedPictures, table: ClassTable) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The row of each picture: by class, then by name; −1 of those that are left out."""
    order = sorted(range(len(listed.names)), key=lambda i: (table.labels[i], listed.names[i]))
    chosen = [i for i in order if table.labels[i] >= 0]
    rows = np.full(len(order), -1)
    rows[chosen] = np.arange(len(chosen))
    return rows


def _pixels(place: Path, name: str, data: bytes, size: int) -> bytes:
    try:
        if len(data) > LARGEST:
            raise PictureError(f"{len(data)} bytes; at most {LARGEST} are read")
        return decode(data, 3, size).transpose(2, 0, 1).tobytes()
    except PictureError as error:
        raise DataError(f"{place}: {name} cannot be read as a picture ({error})") from error
