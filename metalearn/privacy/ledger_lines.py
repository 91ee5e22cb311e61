"""The lines of a ledger: JSON, each with a checksum of itself and of all lines before it.

Axes: none.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import Any, NamedTuple

from metalearn.errors import DataError
from metalearn.privacy.mechanism import Mechanism, mechanism_of
from metalearn.schema import Misfit, choice, mapping, nothing, text, whole

__all__ = ["Declared", "Header", "Reserved", "could_begin_a_line", "read_line", "written"]

_VERSION = 1  # raise it when lines mean something else
_SUM = re.compile(rb'\{"sum":"([0-9a-f]{8})",')
_STEPS = re.compile(rb'"kind":"steps","of":(\d{1,18}),"first":(\d{1,18}),"count":(\d{1,18})\}')
_BEGIN = b'{"sum":"'


class Header(NamedTuple):
    """The first line."""

    def entry(self) -> dict[str, Any]:
        """Itself as JSON."""
        return {"kind": "ledger", "version": _VERSION}


class Declared(NamedTuple):
    """A process is about to take steps of a mechanism for a run."""

    run: str
    name: str
    data: str
    mechanism: Mechanism
    planned: int = 0
    """Steps in all of a run that may be ended before by what it released."""

    def entry(self) -> dict[str, Any]:
        """Itself as JSON."""
        known: dict[str, Any] = {"run": self.run, "name": self.name, "data": self.data}
        known |= {"planned": self.planned} if self.planned else {}
        return {"kind": "mechanism", **known, "mechanism": self.mechanism.state()}


class Reserved(NamedTuple):
    """Steps are about to be taken, of a declaration counted from 0 in the order of the file."""

    number: int
    first: int
    steps: int

    def entry(self) -> dict[str, Any]:
        """Itself as JSON."""
        return {"kind": "steps", "of": self.number, "first": self.first, "count": self.steps}


def written(entry: Header | Declared | Reserved, before: int) -> tuple[bytes, int]:
    """A line, with its end, and its checksum.

    Args:
        entry: what it says.
        before: the checksum of the line before it; 0 at the beginning.
    """
    rest = json.dumps(entry.entry(), separators=(",", ":")).encode()[1:]
    total = zlib.crc32(rest, before)
    return b'{"sum":"%08x",%s\n' % (total, rest), total


def read_line(line: bytes, before: int) -> tuple[Header | Declared | Reserved, int]:
    """What a line says, without its end, and its checksum.

    Raises:
        DataError: it is damaged, of another place, or of no kind that is known here.
    """
    found = _SUM.match(line)
    if found is None:
        raise DataError("it does not begin as lines of a ledger do")
    rest = line[found.end() :]
    total = zlib.crc32(rest, before)
    if int(found[1], 16) != total:
        raise DataError("its checksum is another: it, or a line before it, was changed or is gone")
    steps = _STEPS.fullmatch(rest)
    if steps:
        return Reserved(*map(int, steps.groups())), total
    try:
        return _parsed(json.loads(b"{" + rest)), total
    except (ValueError, RecursionError) as error:
        raise DataError(str(error).partition("\n")[0][:200]) from error


def could_begin_a_line(piece: bytes) -> bool:
    """Whether what stands at the end of a file, without an end of line, may be one half written."""
    return _BEGIN.startswith(piece[: len(_BEGIN)]) or not piece.strip(b"\0")


def _parsed(found: dict[str, Any]) -> Header | Declared | Reserved:
    """The entry in JSON.

    Raises:
        Misfit: it has not what its kind needs.
        DataError: a mechanism that is known to nobody here.
    """
    choice("ledger", "mechanism", "steps")(found.get("kind"), "kind")
    _ENTRIES[found["kind"]](found, "")
    if found["kind"] == "ledger":
        if found["version"] != _VERSION:
            raise Misfit("version", found["version"], str(_VERSION))
        return Header()
    if found["kind"] == "steps":
        return Reserved(found["of"], found["first"], found["count"])
    mechanism = mechanism_of(found["mechanism"])
    return Declared(found["run"], found["name"], found["data"], mechanism, found.get("planned", 0))


_ENTRIES = {
    "ledger": mapping({"kind": text, "version": whole(1)}, others=nothing),
    "mechanism": mapping(
        {"kind": text, "run": text, "name": text, "data": text, "mechanism": mapping({})},
        {"planned": whole(1)},
        others=nothing,
    ),
    "steps": mapping(
        {"kind": text, "of": whole(), "first": whole(), "count": whole()}, others=nothing
    ),
}
