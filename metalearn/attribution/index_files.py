"""The files of an index of gradients: a header, and rows in pieces, each whole or absent.

Axes: N examples, k numbers of a projection.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from metalearn.attribution.projections import ProjectionKind
from metalearn.checkpoint import load_checkpoint, save_checkpoint
from metalearn.errors import DataError
from metalearn.files import read_regular, replace_file
from metalearn.schema import choice, list_of, mapping, maybe, text, whole

__all__ = ["IndexFiles", "IndexHeader"]

_VERSION = 1  # raise it when rows are computed or kept in another way
_NAME = "index.json"
_LARGEST = 2**24  # bytes of a header
_KIND = mapping(
    {
        "version": whole(1),
        "examples": whole(1),
        "size": whole(1),
        "seed": whole(0, 2**64 - 1),
        "projection": choice(*get_args(ProjectionKind)),
        "parameters": maybe(list_of(text)),
        "params_sha256": text,
        "examples_sha256": text,
        "rows_per_file": whole(1),
    }
)


@dataclass(frozen=True)
class IndexHeader:
    """What an index is of, and how it was made."""

    examples: int
    """N."""
    size: int
    """k."""
    seed: int
    projection: ProjectionKind
    parameters: list[str] | None
    params_sha256: str
    examples_sha256: str
    rows_per_file: int


class IndexFiles:
    """The folder of an index.

    Args:
        folder: may be missing before `claim`.
        header: what stands in it, or will.
    """

    def __init__(self, folder: Path, header: IndexHeader) -> None:
        self._folder, self.header = folder, header
        self.count = -(-header.examples // header.rows_per_file)

    @staticmethod
    def header_of(folder: Path) -> IndexHeader:
        """The header in a folder.

        Raises:
            DataError: there is none, or what is there is damaged or of a later version.
        """
        path = folder / _NAME
        if not path.exists():
            raise DataError(f"{folder}: there is no index of gradients (no {_NAME})")
        try:
            found = json.loads(read_regular(path, _LARGEST))
            _KIND(found, "")
        except (OSError, ValueError, RecursionError) as error:
            reason = str(error).partition("\n")[0][:200]
            raise DataError(f"{path}: this is no header of an index ({reason})") from error
        if found["version"] != _VERSION:
            known = f"version {found['version']} is not known here, but {_VERSION} is"
            raise DataError(f"{path}: {known}")
        return IndexHeader(**{field.name: found[field.name] for field in fields(IndexHeader)})

    def claim(self) -> None:
        """Write the header, or find the same one.

        Raises:
            DataError: the folder has another index.
        """
        if not (self._folder / _NAME).exists():
            data = json.dumps({"version": _VERSION, **asdict(self.header)}, indent=1).encode()
            replace_file(self._folder / _NAME, lambda file: file.write(data))
            return
        theirs, ours = asdict(self.header_of(self._folder)), asdict(self.header)
        for name, value in ours.items():
            if theirs[name] != value:
                what = f"{name} is {theirs[name]!r} there and {value!r} here"
                raise DataError(f"{self._folder}: this folder has another index ({what})")

    def rows(self, number: int) -> Tensor | None:
        """The rows in a file; None where it is missing, damaged or of another index."""
        try:
            return self._read(number)
        except DataError:
            return None

    def write(self, number: int, rows: Tensor) -> None:
        """Keep the rows of a file."""
        state = {"header": self._identity(), "number": number, "rows": rows.cpu()}
        save_checkpoint(self._path(number), state)

    def all_rows(self) -> Tensor:
        """``[N, k]``.

        Raises:
            DataError: a file that is missing, damaged or of another index.
        """
        return torch.cat([self._read(number) for number in range(self.count)])

    def _read(self, number: int) -> Tensor:
        path = self._path(number)
        if not path.exists():
            raise DataError(
                f"{path}: this part of the index is missing; build_gradient_index goes on with it"
            )
        state = load_checkpoint(path)
        first = number * self.header.rows_per_file
        count = min(self.header.rows_per_file, self.header.examples - first)
        rows = _rows_of(state, count, self.header.size)
        if rows is None:
            raise DataError(f"{path}: this file has no rows [{count}, {self.header.size}]")
        if repr((state.get("header"), state.get("number"))) != repr((self._identity(), number)):
            raise DataError(f"{path}: this file is a part of another index")
        return rows

    def _path(self, number: int) -> Path:
        return self._folder / f"rows-{number:06d}.pt"

    def _identity(self) -> str:
        return json.dumps(asdict(self.header), sort_keys=True)


def _rows_of(state: dict[str, Any], count: int, size: int) -> Tensor | None:
    rows = state.get("rows")
    if not isinstance(rows, Tensor) or rows.layout is not torch.strided or rows.is_meta:
        return None
    if rows.dtype not in (torch.float32, torch.float64) or tuple(rows.shape) != (count, size):
        return None
    return rows if bool(rows.isfinite().all()) else None
