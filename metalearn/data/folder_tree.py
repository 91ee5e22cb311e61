"""Which folders are classes: the walk over a folder of pictures.

Axes: C classes (folders with pictures), G groups (the folders above them), three splits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from metalearn.errors import DataError

__all__ = ["ClassFolder", "class_folders", "find_classes", "subfolders"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class ClassFolder:
    """A class: its name, group and pictures; ``split`` is ``""`` where folders do not say it."""

    name: str
    group: str
    files: tuple[Path, ...]
    split: str = ""


def find_classes(root: Path, *, shared: bool = False) -> list[ClassFolder]:
    """The classes below a folder, sorted by name; at least one, each with pictures.

    Subfolders train, validation (or val) and test are splits when train and test are both there
    or when there is nothing else; a lone ``train`` among other folders is a class.

    Args:
        root: the folder.
        shared: whether splits may hold pictures of the same class, which then comes once a split.

    Raises:
        DataError: no pictures, an empty class folder, pictures outside class folders, a class
            in two splits that may not be, a split that is missing.
    """
    folders, _ = _listed(root)
    names = {folder.name for folder in folders}
    if {"train", "test"} <= names or (names and names <= set(_SPLITS)):
        classes = _named_splits(root, folders)
    else:
        classes = _classes(root, split="")
    classes.sort(key=lambda c: c.name)
    for one, other in pairwise(classes):
        if one.name == other.name and not shared:
            raise DataError(
                f"{root}: the class {one.name} stands in {one.split} and in {other.split}, but "
                "splits of few-shot tasks share no class; put all class folders into one folder "
                "to have them divided by class"
            )
    return classes


def class_folders(base: Path) -> list[ClassFolder]:
    """The classes in a folder, ``class`` or ``group/class``, sorted by name, whatever their names.

    Raises:
        DataError: as `find_classes`.
    """
    return sorted(_classes(base, split=""), key=lambda found: found.name)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name; hidden ones are passed over.

    Raises:
        DataError: it cannot be listed.
    """
    return _listed(folder)[0]


def _named_splits(root: Path, folders: list[Path]) -> list[ClassFolder]:
    found: dict[str, Path] = {}
    for folder in folders:
        split = _SPLITS.get(folder.name)
        if split is None:
            raise DataError(
                f"{root}: the folder {folder.name} stands beside train and test; only train, "
                "validation (or val) and test may"
            )
        if split in found:
            raise DataError(f"{root}: val and validation are both there; one of them is needed")
        found[split] = folder
    for split in ("train", "validation", "test"):
        if split not in found:
            there = ", ".join(sorted(folder.name for folder in folders))
            raise DataError(f"{root}: the folder {split} is missing beside {there}")
    return [c for split, folder in found.items() for c in _classes(folder, split)]


def _classes(base: Path, split: str) -> list[ClassFolder]:
    """Class folders of one or two levels, ``class`` or ``group/class``."""
    folders, loose = _listed(base)
    if loose:
        raise DataError(f"{base}: {loose[0].name} lies outside of any class folder")
    classes: list[ClassFolder] = []
    for folder in folders:
        inner, files = _listed(folder)
        if not inner:
            classes.append(_class(folder, folder.name, "", files, split))
            continue
        if files:
            raise DataError(
                f"{folder} holds both pictures and folders: it can be a class (pictures) or a "
                "group (class folders)"
            )
        for nested in inner:
            deeper, files = _listed(nested)
            if deeper:
                raise DataError(
                    f"{deeper[0]} lies too deep: class/picture or group/class/picture is needed"
                )
            classes.append(
                _class(nested, f"{folder.name}/{nested.name}", folder.name, files, split)
            )
    if not classes:
        raise DataError(f"{base}: no class folders with pictures are there")
    return classes


def _class(folder: Path, name: str, group: str, files: list[Path], split: str) -> ClassFolder:
    if not files:
        known = ", ".join(suffix[1:] for suffix in _SUFFIXES)
        raise DataError(f"{folder}: a class folder without pictures ({known}); fill or remove it")
    return ClassFolder(name, group, tuple(files), split)


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """Sorted subfolders and pictures; nothing hidden, no link to where the walk came from."""
    above = {folder.resolve(), *folder.resolve().parents}
    folders, pictures = [], []
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if entry.is_dir():
            if not entry.is_symlink() or entry.resolve() not in above:
                folders.append(entry)
        # A pipe or a link to nothing is a picture that cannot be read, not one that is not there.
        elif entry.suffix.lower() in _SUFFIXES:
            pictures.append(entry)
    return folders, pictures
