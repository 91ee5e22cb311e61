"""Which folders are classes: the walk over a folder of pictures, or of texts.

Axes: C classes (folders with such files), G groups (the folders above them), three splits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from metalearn.errors import DataError

__all__ = [
    "PICTURES",
    "SPLIT_NAMES",
    "TEXTS",
    "ClassFolder",
    "FileKind",
    "class_folders",
    "find_classes",
    "subfolders",
]

SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
"""By what folders and tables call them, the splits."""


@dataclass(frozen=True)
class FileKind:
    """The files that class folders hold: what one is called, and how their names end."""

    noun: str
    suffixes: tuple[str, ...]


PICTURES = FileKind("picture", (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"))
TEXTS = FileKind("text", (".txt",))


@dataclass(frozen=True)
class ClassFolder:
    """A class: its name, group and files; ``split`` is ``""`` where folders do not say it."""

    name: str
    group: str
    files: tuple[Path, ...]
    split: str = ""


def find_classes(
    root: Path, *, shared: bool = False, kind: FileKind = PICTURES
) -> list[ClassFolder]:
    """The classes below a folder, sorted by name; at least one, each with files of the kind.

    Subfolders train, validation (or val) and test are splits when train and test are both there
    or when there is nothing else; a lone ``train`` among other folders is a class.

    Args:
        root: the folder.
        shared: whether splits may hold files of the same class, which then comes once a split.
        kind: of the files.

    Raises:
        DataError: no files, an empty class folder, files outside class folders, a class in two
            splits that may not be, a split that is missing.
    """
    folders, _ = _listed(root, kind)
    names = {folder.name for folder in folders}
    if {"train", "test"} <= names or (names and names <= set(SPLIT_NAMES)):
        classes = _named_splits(root, folders, kind)
    else:
        classes = _classes(root, "", kind)
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
    return sorted(_classes(base, "", PICTURES), key=lambda found: found.name)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name; hidden ones are passed over.

    Raises:
        DataError: it cannot be listed.
    """
    return _listed(folder, PICTURES)[0]


def _named_splits(root: Path, folders: list[Path], kind: FileKind) -> list[ClassFolder]:
    found: dict[str, Path] = {}
    for folder in folders:
        split = SPLIT_NAMES.get(folder.name)
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
    return [c for split, folder in found.items() for c in _classes(folder, split, kind)]


def _classes(base: Path, split: str, kind: FileKind) -> list[ClassFolder]:
    """Class folders of one or two levels, ``class`` or ``group/class``."""
    noun = kind.noun
    folders, loose = _listed(base, kind)
    if loose:
        raise DataError(f"{base}: {loose[0].name} lies outside of any class folder")
    classes: list[ClassFolder] = []
    for folder in folders:
        inner, files = _listed(folder, kind)
        if not inner:
            classes.append(_class(folder, folder.name, "", files, split, kind))
            continue
        if files:
            raise DataError(
                f"{folder} holds both {noun}s and folders: it can be a class ({noun}s) or a "
                "group (class folders)"
            )
        for nested in inner:
            deeper, files = _listed(nested, kind)
            if deeper:
                raise DataError(
                    f"{deeper[0]} lies too deep: class/{noun} or group/class/{noun} is needed"
                )
            name = f"{folder.name}/{nested.name}"
            classes.append(_class(nested, name, folder.name, files, split, kind))
    if not classes:
        raise DataError(f"{base}: no class folders with {noun}s are there")
    return classes


def _class(
    folder: Path, name: str, group: str, files: list[Path], split: str, kind: FileKind
) -> ClassFolder:
    if not files:
        known = ", ".join(suffix[1:] for suffix in kind.suffixes)
        raise DataError(
            f"{folder}: a class folder without {kind.noun}s ({known}); fill or remove it"
        )
    return ClassFolder(name, group, tuple(files), split)


def _listed(folder: Path, kind: FileKind) -> tuple[list[Path], list[Path]]:
    """Sorted subfolders and files of the kind; nothing hidden, no link to a folder above."""
    above = {folder.resolve(), *folder.resolve().parents}
    folders, files = [], []
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
        # A pipe or a link to nothing is a file that cannot be read, not one that is not there.
        elif entry.suffix.lower() in kind.suffixes:
            files.append(entry)
    return folders, files
