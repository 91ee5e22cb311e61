"""Encoded pictures of a data set as it was downloaded, listed before any of them is read.

Axes: N pictures.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from metalearn.data.folder_tree import find_classes
from metalearn.data.parquet_files import find_parquet, list_parquet
from metalearn.data.pictures import LARGEST
from metalearn.errors import DataError
from metalearn.files import read_regular

__all__ = ["ListedPictures", "PictureSource", "files_identity", "find_pictures"]

_LISTS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
_LABELS = ("label", "class", "class_name")
_LARGEST_LIST = 2**28  # bytes of a CSV file; tiered-ImageNet's has 20 million
_PICKLES = (".pkl", ".pickle", ".pt", ".pth")


@dataclass(frozen=True)
class ListedPictures:
    """N pictures, of which split, class and name are known.

    Attributes:
        splits: of each; ``""`` where the source does not divide its classes.
        labels: name of the class of each.
        names: of each, for messages and for the order within a class.
        encoded: gives numbers of pictures and their bytes, in the order in which they lie.
        named: whether labels are names of classes, and not mere numbers.
    """

    splits: Sequence[str]
    labels: Sequence[str]
    names: Sequence[str]
    encoded: Callable[[], Iterator[tuple[int, bytes]]]
    named: bool = True


@dataclass(frozen=True)
class PictureSource:
    """Where pictures lie; they are listed when they are asked for.

    Attributes:
        place: a folder or an archive.
        files: all that is read there.
        listed: lists the pictures.
    """

    place: Path
    files: Sequence[Path]
    listed: Callable[[], ListedPictures]

    def identity(self) -> str:
        """A checksum of names, sizes and times of the files, which changes when they do."""
        base = self.place if self.place.is_dir() else self.place.parent
        return files_identity(base, self.files)


def files_identity(base: Path, files: Sequence[Path]) -> str:
    """A checksum of names below a folder, sizes and times of files, which changes when they do.

    Raises:
        DataError: a file that is not there, or may not be looked at.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            stat = file.stat()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
        name = os.path.relpath(file, base)
        digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode(errors="replace"))
    return digest.hexdigest()


def find_pictures(root: Path) -> PictureSource | None:
    """The pictures of a folder, in one of three layouts; None where there is none of them.

    Lists ``train.csv``, ``val.csv`` and ``test.csv`` with the columns ``filename`` and ``label``,
    whose pictures lie in ``images/`` or beside them, also in folders of classes; Parquet files
    with ``train``, ``validation`` (or ``val``) and ``test`` in their names or their folders' names;
    folders of classes, below folders of splits or not, also in ``images/``.

    Raises:
        DataError: one layout that is incomplete, or pickled files alone.
    """
    if not root.is_dir():
        return None
    if (root / "train.csv").is_file():
        return _from_lists(root)
    parquet = find_parquet(root)
    if parquet:
        return PictureSource(root, parquet, lambda: ListedPictures(*list_parquet(root, parquet)))
    inside = root / "images" if (root / "images").is_dir() else root
    if any(entry.is_dir() for entry in inside.iterdir()):
        return _from_tree(inside)
    pickled = sorted(p.name for p in root.iterdir() if p.suffix.lower() in _PICKLES)
    if pickled:
        raise DataError(
            f"{root}: {pickled[0]} is a pickle, which could run any code and is not read; folders "
            "of pictures or Parquet files are needed"
        )
    return None


def _from_tree(root: Path) -> PictureSource:
    classes = find_classes(root, shared=True)
    files = [file for c in classes for file in c.files]

    def listed() -> ListedPictures:
        return ListedPictures(
            [c.split for c in classes for _ in c.files],
            [c.name for c in classes for _ in c.files],
            [file.name for file in files],
            lambda: _read(files),
        )

    return PictureSource(root, files, listed)


def _from_lists(root: Path) -> PictureSource:
    lists = {split: _list_file(root, split) for split in _LISTS}
    rows = [(split, *row) for split, path in lists.items() for row in _rows(path)]
    files = [_place(root, name, label) for _, name, label in rows]

    def listed() -> ListedPictures:
        splits, names, labels = ([row[i] for row in rows] for i in range(3))
        return ListedPictures(splits, labels, names, lambda: _read(files))

    return PictureSource(root, [*lists.values(), *files], listed)


def _list_file(root: Path, split: str) -> Path:
    for name in _LISTS[split]:
        if (root / f"{name}.csv").is_file():
            return root / f"{name}.csv"
    raise DataError(f"{root}: {_LISTS[split][0]}.csv is missing beside train.csv")


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    """File name and class of each line."""
    try:
        text = read_regular(path, _LARGEST_LIST).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    lines = _lines(path, text)
    header = [column.strip().lower() for column in next(lines, [])]
    label = next((header.index(name) for name in _LABELS if name in header), None)
    if "filename" not in header or label is None:
        found = ", ".join(header) or "nothing"
        raise DataError(f"{path}: its first line needs the columns filename and label, not {found}")
    name = header.index("filename")
    for number, row in enumerate(lines, 2):
        if not row:
            continue
        if len(row) != len(header) or not row[name] or not row[label]:
            raise DataError(f"{path}: line {number} has no {len(header)} columns")
        yield row[name].strip(), row[label].strip()


def _lines(path: Path, text: str) -> Iterator[list[str]]:
    try:
        yield from csv.reader(io.StringIO(text))
    except csv.Error as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _place(root: Path, name: str, label: str) -> Path:
    """Where a listed picture lies."""
    for text in (name, label):
        if ".." in PurePosixPath(text).parts or Path(text).is_absolute():
            raise DataError(f"{root}: {text} would lie outside of the folder")
    for base in (root / "images", root):
        for file in (base / name, base / label / name):
            if file.is_file():
                return file
    raise DataError(f"{root}: the listed picture {name} of {label} is neither in images nor beside")


def _read(files: Sequence[Path]) -> Iterator[tuple[int, bytes]]:
    for number, file in enumerate(files):
        try:
            yield number, read_regular(file, LARGEST)
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
