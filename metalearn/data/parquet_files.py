"""Pictures and texts in Parquet files, as the Hugging Face Hub has them; pyarrow reads them.

Axes: N pictures or texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metalearn.errors import DataError

__all__ = ["check_once", "find_parquet", "list_parquet", "parquet_rows"]

_IMAGES, _LABELS = ("image", "img"), ("label", "labels", "class")
_SPLIT = re.compile(r"(train|validation|val|test)(?![a-z])")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.parquet")
_AT_ONCE = 32  # pictures


def find_parquet(root: Path) -> list[Path]:
    """Parquet files of a folder, of its folder ``data``, or of those of splits.

    Raises:
        DataError: a part of several (``-00002-of-00013``) is missing.
    """
    for pattern in ("*.parquet", "data/*.parquet", "*/*.parquet"):
        found = sorted(path for path in root.glob(pattern) if path.is_file())
        if found:
            _check_shards(found)
            return found
    return []


def list_parquet(
    root: Path, files: Sequence[Path]
) -> tuple[list[str], list[str], list[str], Callable[[], Iterator[tuple[int, bytes]]], bool]:
    """Splits, classes and names of all pictures, what reads them, and whether classes have names.

    Names of classes are the labels, where they are texts, or stand in the files' description of
    their features; labels that are mere numbers stand for themselves.

    Raises:
        DataError: pyarrow is missing, a file is damaged or has no pictures with labels.
    """
    splits: list[str] = []
    labels: list[str] = []
    names: list[str] = []
    named = True
    for path in files:
        values, known = _read_labels(path)
        split = _split_of(root, path)
        if known is None and not all(isinstance(value, str) for value in values):
            named = False
        for row, value in enumerate(values):
            splits.append(split)
            labels.append(_label(path, value, known))
            names.append(f"{path.name}, row {row:06d}")
    return splits, labels, names, lambda: _pictures(files), named


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a table, with the names of labels where the file's description has them.

    Args:
        path: of the file.
        columns: that are read, where they are there; the others are None in every row.

    Raises:
        DataError: pyarrow is missing, the file is damaged, or a column is there twice.
    """
    with _opened(path) as file:
        every = file.schema_arrow.names
        check_once(path, every, columns)
        wanted = [name for name in columns if name in every]
        with _failures_named(path):
            rows: list[dict[str, Any]] = file.read(wanted).to_pylist()
        known = {name: _class_names(file, name) for name in wanted}
    for row in rows:
        named = {n: _label(path, row[n], names) for n, names in known.items() if names is not None}
        yield {**dict.fromkeys(every), **row, **named}


def check_once(path: Path, names: Sequence[str], columns: Sequence[str]) -> None:
    """Refuse a table in which a column that is read has the name of another.

    Raises:
        DataError: names it.
    """
    for name in columns:
        if list(names).count(name) > 1:
            raise DataError(f"{path}: the column {name} is there more than once")


def _read_labels(path: Path) -> tuple[list[Any], list[str] | None]:
    """Labels of a file, and the names of what they number, where it has them."""
    with _opened(path) as file:
        column = _column(path, file, _LABELS)
        with _failures_named(path):
            values: list[Any] = file.read([column]).column(0).to_pylist()
        return values, _class_names(file, column)


def _pictures(files: Sequence[Path]) -> Iterator[tuple[int, bytes]]:
    number = 0
    for path in files:
        with _opened(path) as file:
            batches = file.iter_batches(_AT_ONCE, columns=[_column(path, file, _IMAGES)])
            while True:
                with _failures_named(path):
                    batch = next(batches, None)
                if batch is None:
                    break
                for cell in batch.column(0).to_pylist():
                    data = cell.get("bytes") if isinstance(cell, dict) else cell
                    if not isinstance(data, bytes):
                        raise DataError(f"{path}: picture {number} has no bytes in it")
                    yield number, data
                    number += 1


def _opened(path: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile  # an extra, and slow to import
    except ImportError:
        raise DataError(
            f"{path}: pyarrow is needed to read Parquet files: pip install torch-metalearn[parquet]"
        ) from None
    with _failures_named(path):
        return ParquetFile(path)


@contextmanager
def _failures_named(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # pyarrow's own errors are of many kinds
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _column(path: Path, file: Any, known: Sequence[str]) -> str:
    columns = file.schema_arrow.names
    for name in known:
        if name in columns:
            return name
    raise DataError(f"{path}: no column {' or '.join(known)} among {', '.join(columns)}")


def _class_names(file: Any, column: str) -> list[str] | None:
    """What the Hub says of a column of numbers."""
    text = (file.schema_arrow.metadata or {}).get(b"huggingface", b"")
    try:
        names = json.loads(text)["info"]["features"][column]["names"]
    except (TypeError, ValueError, LookupError):
        return None
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else None


def _label(path: Path, value: Any, known: list[str] | None) -> str:
    if isinstance(value, str):
        return value
    if type(value) is not int or value < 0 or (known is not None and value >= len(known)):
        raise DataError(f"{path}: {value!r} is no label")
    return str(value) if known is None else known[value]


def _split_of(root: Path, path: Path) -> str:
    for part in reversed(path.relative_to(root).parts):
        match = _SPLIT.match(part)
        if match:
            return "validation" if match[1] == "val" else match[1]
    raise DataError(f"{path}: train, validation or test is needed at the start of its name")


def _check_shards(files: Sequence[Path]) -> None:
    found: dict[tuple[Path, str, int], set[int]] = {}
    for path in files:
        match = _SHARD.fullmatch(path.name)
        if match:
            found.setdefault((path.parent, match[1], int(match[3])), set()).add(int(match[2]))
    for (folder, name, count), numbers in found.items():
        missing = sorted(set(range(count)) - numbers)
        if missing:
            file = f"{name}-{missing[0]:05d}-of-{count:05d}.parquet"
            raise DataError(f"{folder}: {file} is missing, one of {count} parts")
