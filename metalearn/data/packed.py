"""Array files: what took long to read is kept packed, checked by a checksum.

Axes: free; a pack holds named arrays of any shape and a line of text that says what they came from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from metalearn.data.made_once import made_once
from metalearn.data.mapped import check_machine, mapped
from metalearn.errors import DataError
from metalearn.files import UNREADABLE_ARRAYS, check_regular, replace_file

__all__ = ["Pack", "kept_pack", "load_pack", "read_pack", "save_pack", "write_pack"]

_HEADER = "header"
_LARGEST = 2**34  # bytes that compressed arrays may claim; others are as long as their file
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pack:
    """Arrays by name, and the identity of the source that they were made from."""

    arrays: Mapping[str, np.ndarray[Any, Any]]
    source: str


def kept_pack(
    path: Path, source: str | None, make: Callable[[], Mapping[str, np.ndarray[Any, Any]]]
) -> Pack:
    """The pack of a source, made by one process while others wait (`made_once`) and then mapped.

    Args:
        path: of its file.
        source: identity of what it is made from; another one's pack is made anew. None takes any.
        make: gives the arrays.
    """

    def kept() -> Pack | None:
        pack = read_pack(path)
        return pack if pack is not None and source in (None, pack.source) else None

    def made() -> Pack:
        pack = Pack(make(), source or "")
        write_pack(path, pack)
        return read_pack(path) or pack

    return made_once(path, kept, made)


def read_pack(path: Path) -> Pack | None:
    """The pack in a file, or None where there is none or where it is damaged.

    Arrays of bytes that `write_pack` wrote are mapped into memory: the processes of a machine share
    the one copy that the system keeps of the file, and what one writes to its array stays its own.
    A pack of data is a convenience: whoever gets None builds it again from the source. What
    `write_pack` has written is read whatever its size.

    Raises:
        DataError: the machine has no room to map the file, see `check_machine`.
    """
    try:
        return _unpacked(path)
    except FileNotFoundError:
        return None
    except UNREADABLE_ARRAYS as error:
        check_machine(path, error)
        _log.warning("%s is damaged and is left aside: %s", path, error)
        return None


def load_pack(path: Path) -> Pack:
    """The pack in a file that is needed.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is damaged, or no pack, or there is no memory for it.
    """
    try:
        return _unpacked(path)
    except FileNotFoundError:
        raise
    except UNREADABLE_ARRAYS as error:
        check_machine(path, error)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is damaged: {reason}") from error


def write_pack(path: Path, pack: Pack) -> None:
    """Write a pack of data, as it lies in memory; where that fails a warning is logged.

    A folder that cannot be written to costs speed, not the run.
    """
    try:
        replace_file(path, lambda file: np.savez(file, **_columns(pack)))
    except OSError as error:
        _log.warning("%s could not be written, the next load is slower: %s", path, error)


def save_pack(path: Path, pack: Pack) -> None:
    """Write a pack, compressed, whole or not at all: a temporary file beside it, then one rename.

    Raises:
        OSError: what the system refuses, with ``path`` as its file.
    """
    replace_file(path, lambda file: np.savez_compressed(file, **_columns(pack)))


def _columns(pack: Pack) -> dict[str, Any]:
    header = {"source": pack.source, "sha256": _digest(pack.arrays, pack.source)}
    return {_HEADER: np.array(json.dumps(header)), **pack.arrays}


def _unpacked(path: Path) -> Pack:
    check_regular(path, sys.maxsize)
    # Opened here because np.load leaves the file open when it is no archive.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        _check_sizes(path.stat().st_size, stored.zip.infolist())
        for member in stored.zip.infolist():
            _check_claim(stored.zip, member)
        header = json.loads(str(stored[_HEADER]))
        arrays = {name: _array(file, stored, name) for name in stored.files if name != _HEADER}
    if header["sha256"] != _digest(arrays, header["source"]):
        raise ValueError("its checksum does not fit")
    return Pack(arrays, header["source"])


def _check_sizes(there: int, members: list[zipfile.ZipInfo]) -> None:
    """Refuse arrays that would take far more memory than their file could hold."""
    plain = sum(m.file_size for m in members if m.compress_type == zipfile.ZIP_STORED)
    claimed = sum(m.file_size for m in members) - plain
    if plain > there or claimed > _LARGEST:
        raise ValueError(f"its arrays claim more than {there if plain > there else _LARGEST} bytes")


def _check_claim(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Refuse an array that is not as long as it says, before anything makes room for it."""
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{member.filename} is no array as packs have them")
        shape, _, kind = np.lib.format.read_array_header_1_0(file)
        if file.tell() + math.prod(shape) * kind.itemsize != member.file_size:
            raise ValueError(f"{member.filename} is not as long as its shape {shape} says")


def _array(file: IO[bytes], stored: Any, name: str) -> np.ndarray[Any, Any]:
    """An array of an open archive, mapped where its bytes lie in the file as they are."""
    try:
        member = stored.zip.getinfo(f"{name}.npy")
    except KeyError:
        member = stored.zip.getinfo(name)
    if member.compress_type == zipfile.ZIP_STORED:
        file.seek(member.header_offset + 26)  # of the local header, whose last parts vary in length
        start = member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        file.seek(start)
        np.lib.format.read_magic(file)
        shape, by_columns, kind = np.lib.format.read_array_header_1_0(file)
        if kind == np.uint8 and 0 not in shape and not by_columns:
            return mapped(file, file.tell(), shape)
    found: np.ndarray[Any, Any] = stored[name]
    return found


def _digest(arrays: Mapping[str, np.ndarray[Any, Any]], source: str) -> str:
    digest = hashlib.sha256(source.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
