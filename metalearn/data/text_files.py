"""Labelled texts from class folders of text files, or from the rows of tables.

Axes: N texts, C classes.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalearn.data.folder_reading import existing_folder
from metalearn.data.folder_tree import SPLIT_NAMES, TEXTS, find_classes
from metalearn.data.parquet_files import check_once, parquet_rows
from metalearn.errors import DataError, SettingError
from metalearn.files import read_regular

__all__ = ["LabelledText", "read_texts"]

_Reader = Callable[[Path, Sequence[str]], Iterable[Mapping[str, Any]]]

_LARGEST_TEXT = 2**20  # bytes of a file that is one text
_LARGEST_TABLE = 2**31
_GROUP, _SPLIT = "group", "split"
_BEYOND: Any = None  # under which Python's reader has the cells that no column is named for


@dataclass(frozen=True)
class LabelledText:
    """A text: where it stands, its class with its group and split (``""`` for none)."""

    where: str
    text: str
    label: str
    group: str
    split: str


@dataclass(frozen=True)
class _Columns:
    """Which columns of a table hold text and class."""

    text: str
    label: str


def read_texts(root: str | Path, *, text: str, label: str) -> list[LabelledText]:
    """All texts of a folder or a table, in the order of class folders and files, or of rows.

    Args:
        root: a folder of class folders, a table, or a folder of the tables train, validation (or
            val) and test.
        text: the column of texts.
        label: the column of classes.

    Raises:
        SettingError: nothing at ``root``, columns of what is no table.
        DataError: no texts, a file that cannot be read, a column that is missing.
    """
    columns = _Columns(text, label)
    path = Path(root).expanduser()
    if path.is_file():
        return _rows(path, columns, "")
    folder = existing_folder(root)
    tables = [p for p in sorted(folder.iterdir()) if _is_table(p)]
    if tables:
        return _of_tables(folder, tables, columns)
    for name in ("text", "label"):
        if getattr(columns, name) != name:
            accepted = "a table is needed for it: texts of class folders have no columns"
            raise SettingError(name, getattr(columns, name), accepted)
    return _of_folders(folder)


def _is_table(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in _READERS and path.is_file()


def _of_folders(root: Path) -> list[LabelledText]:
    found = []
    for folder in find_classes(root, kind=TEXTS):
        for file in folder.files:
            where = str(file.relative_to(root))
            try:
                text = read_regular(file, _LARGEST_TEXT).decode("utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{root}: {where} cannot be read as a text ({error})") from error
            found.append(LabelledText(where, text, folder.name, folder.group, folder.split))
    return found


def _of_tables(root: Path, tables: list[Path], columns: _Columns) -> list[LabelledText]:
    """Rows of the tables of the three splits."""
    named: dict[str, Path] = {}
    for table in tables:
        split = SPLIT_NAMES.get(table.stem)
        if split is None or split in named:
            raise DataError(
                f"{root}: {table.name} is none of the tables train, validation and test, each of "
                "which is needed once; the path of one table will do as well"
            )
        named[split] = table
    missing = [split for split in ("train", "validation", "test") if split not in named]
    if missing:
        there = ", ".join(table.name for table in tables)
        raise DataError(f"{root}: the table {missing[0]} is missing beside {there}")
    return [row for split, table in named.items() for row in _rows(table, columns, split)]


def _rows(path: Path, columns: _Columns, split: str) -> list[LabelledText]:
    """The rows of a table; its own column of splits counts where ``split`` is empty."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        accepted = f"a folder or a table ({', '.join(_READERS)}) is needed"
        raise SettingError("root", str(path), accepted)
    found, asked = [], (columns.text, columns.label)
    read = tuple(dict.fromkeys((*asked, _GROUP, _SPLIT)))
    for number, row in enumerate(reader(path, read), start=1):
        where = f"{path.name}, row {number}"
        cells = {n: _cell(path, number, n, row.get(n)) for n in read}
        for column in asked:
            if cells[column] is None:
                there = ", ".join(str(name) for name in row)
                raise DataError(f"{path}: row {number} has no {column}; its columns are {there}")
        own = split or _split_of(path, number, cells[_SPLIT])
        group, label = (_name(path, number, n, cells[n]) for n in (_GROUP, columns.label))
        if not label:
            raise DataError(f"{path}: the {columns.label} of row {number} is empty")
        name = f"{group}/{label}" if group else label
        found.append(LabelledText(where, cells[columns.text] or "", name, group, own))
    if not found:
        raise DataError(f"{path}: this table has no rows")
    if len({bool(text.split) for text in found}) > 1:
        bare = next(text.where for text in found if not text.split)
        raise DataError(f"{path}: {bare} names no split, and others do")
    return found


def _cell(path: Path, number: int, column: str, value: Any) -> str | None:
    """What a cell says; None of one with nothing in it, which is NaN in tables of numbers."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str | int | float):
        shown = type(value).__name__
        raise DataError(f"{path}: the {column} of row {number} is no text or number ({shown})")
    return str(value)


def _name(path: Path, number: int, column: str, cell: str | None) -> str:
    """A cell that is a name, of a class or group, without blanks around it."""
    name = (cell or "").strip()
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{path}: the {column} of row {number} is no Unicode ({error})") from error
    return name


def _split_of(path: Path, number: int, value: str | None) -> str:
    if value is None or not value.strip():
        return ""
    split = SPLIT_NAMES.get(value.strip())
    if split is None:
        known = ", ".join(SPLIT_NAMES)
        raise DataError(f"{path}: row {number} has the {_SPLIT} {value}; known are {known}")
    return split


def _separated(separator: str) -> _Reader:
    def read(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        rows = csv.DictReader(
            io.StringIO(_decoded(path), newline=""), delimiter=separator, strict=True
        )
        try:
            check_once(path, rows.fieldnames or (), columns)
            for number, row in enumerate(rows, start=1):
                if any(row.pop(_BEYOND, ())):
                    raise DataError(
                        f"{path}: row {number} has more cells than there are columns; a text with "
                        f"{separator!r} in it needs quotes"
                    )
                yield row
        except csv.Error as error:
            raise DataError(f"{path} cannot be read as a table ({error})") from error

    return read


def _json_lines(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number} is no JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number} is no JSON object")
        yield row


def _decoded(path: Path) -> str:
    try:
        return read_regular(path, _LARGEST_TABLE).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a table ({error})") from error


_READERS: dict[str, _Reader] = {
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".jsonl": _json_lines,
    ".parquet": parquet_rows,
}
"""By the end of a table's name, what reads its rows, at least the columns asked for."""
