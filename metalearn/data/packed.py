"""Small array files: what took long to read is kept packed, checked by a checksum.

Axes: free; a pack holds named arrays of any shape and a line of text that says what they came from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.files import check_regular, replace_file

__all__ = ["Pack", "read_pack", "write_pack"]

_HEADER = "header"
_LARGEST = 2**34  # bytes, packed or not; the largest set of glyphs has 14 billion
_UNREADABLE = (
    OSError, ValueError, TypeError, AttributeError, LookupError, EOFError, RuntimeError,
    MemoryError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pack:
    """Arrays by name, and the identity of the source that they were made from."""

    arrays: Mapping[str, np.ndarray[Any, Any]]
    source: str


def read_pack(path: Path) -> Pack | None:
    """The pack in a file, or None where there is none or where it is damaged.

    A pack is a convenience: whoever gets None builds it again from the source.
    """
    try:
        check_regular(path, _LARGEST)
        # Opened here because np.load leaves the file open when it is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if sum(member.file_size for member in stored.zip.infolist()) > _LARGEST:
                raise ValueError(f"its arrays claim more than {_LARGEST} bytes")
            header = json.loads(str(stored[_HEADER]))
            arrays = {name: stored[name] for name in stored.files if name != _HEADER}
            if header["sha256"] == _digest(arrays, header["source"]):
                return Pack(arrays, header["source"])
    except FileNotFoundError:
        return None
    except _UNREADABLE as error:
        _log.warning("%s is damaged and is left aside: %s", path, error)
        return None
    _log.warning("%s is damaged and is left aside: its checksum does not fit", path)
    return None


def write_pack(path: Path, pack: Pack) -> None:
    """Write a pack whole or not at all: a temporary file beside it, then one rename.

    A folder that cannot be written to costs speed, not the run: a warning is logged.
    """
    header = {"source": pack.source, "sha256": _digest(pack.arrays, pack.source)}
    columns: dict[str, Any] = {_HEADER: np.array(json.dumps(header)), **pack.arrays}
    try:
        replace_file(path, lambda file: np.savez_compressed(file, **columns))
    except OSError as error:
        _log.warning("%s could not be written, the next load is slower: %s", path, error)


def _digest(arrays: Mapping[str, np.ndarray[Any, Any]], source: str) -> str:
    digest = hashlib.sha256(source.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
