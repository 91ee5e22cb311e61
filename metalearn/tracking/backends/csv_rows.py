"""One table of all numbers, ``metrics.csv`` in the run's folder: ``tracker=csv``.

Axes: none; a step is one outer (meta) step, counted from 0 over all resumptions.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from metalearn.files import append_whole, failures_named, replace_file
from metalearn.tracking.backends.backend import RunFacts, TrackerBackend

__all__ = ["CsvRows"]

_NAME = "metrics.csv"
_COLUMNS = ("step", "time", "name", "value")
_Cell = tuple[str, str, str]  # step, time and name


class CsvRows(TrackerBackend):
    """Writes ``folder/metrics.csv``, a row for each number: ``step,time,name,value``.

    It is long and not wide, as what is recorded differs from step to step:
    ``table.pivot_table(index="step", columns="name", values="value")`` of pandas makes it wide.
    Time is in Unix seconds, as in ``metrics.jsonl``, and numbers that are not finite are ``nan``,
    ``inf`` and ``-inf``. The rows of one record are written as one piece.

    A run that goes on has the rows of what stays in ``metrics.jsonl``, all of it, also if the file
    was not kept from the beginning; what a crash has torn is gone.
    """

    name: ClassVar[str] = "csv"
    failures = (OSError,)

    def __init__(self, run: RunFacts) -> None:
        self._path = run.folder / _NAME
        old = self._path.read_bytes() if self._path.exists() else None
        kept = _text([_COLUMNS, *_kept(run.records, {} if old is None else _values(old))])
        if kept != old:
            replace_file(self._path, lambda file: file.write(kept))
        self._file = self._path.open("ab", buffering=0)

    @classmethod
    def watched(cls, folder: Path) -> str:
        """The file."""
        return str(folder / _NAME)

    def scalars(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """A row for each."""
        if values:
            with failures_named(self._path):
                rows = ((str(step), str(time), name, str(value)) for name, value in values.items())
                append_whole(self._file, _text(rows))

    def close(self, ending: str = "finished") -> None:
        """Close the file."""
        self._file.close()


def _text(rows: Iterable[tuple[str, ...]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _kept(
    records: Iterable[Mapping[str, Any]], known: Mapping[_Cell, str]
) -> Iterator[tuple[str, ...]]:
    """Rows of JSON's records; of what these have as null, the value that was written before."""
    for record in records:
        step, time = str(record["step"]), str(record.get("time", ""))
        for name, value in record.items():
            if name in ("step", "time"):
                continue
            before = known.get((step, time, name), "nan")
            yield step, time, name, before if value is None else str(value)


def _values(text: bytes) -> dict[_Cell, str]:
    """Values that are not finite, by the rest of their rows."""
    rows = csv.reader(io.StringIO(text.decode(errors="replace"), newline=""))
    found: dict[_Cell, str] = {}
    try:
        for row in rows:
            if len(row) == len(_COLUMNS) and row[3] in ("nan", "inf", "-inf"):
                found[row[0], row[1], row[2]] = row[3]
    except csv.Error:  # of a file that somebody else has written
        return found
    return found
