"""Small array files: what took long to read is kept packed, checked by a checksum.

Axes: free; a pack holds named arrays of any shape and a line of text that says what they came from.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.errors import DataError
from metalearn.files import UNREADABLE_ARRAYS, check_regular, replace_file

__all__ = ["Pack", "load_pack", "read_pack", "save_pack", "write_pack"]

_HEADER = "header"
_LARGEST = 2**34  # bytes, packed or not; the largest set of glyphs has 14 billion
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pack:
    """Arrays by name, and the identity of the source that they were made from."""

    arrays: Mapping[str, np.ndarray[Any, Any]]
    source: str


def read_pack(path: Path) -> Pack | None:
    """The pack in a file, or None where there is none or where it is damaged.

    A pack of data is a convenience: whoever gets None builds it again from the source.
    """
    try:
        return _unpacked(path)
    except FileNotFoundError:
        return None
    except UNREADABLE_ARRAYS as error:
        _log.warning("%s is damaged and is left aside: %s", path, error)
        return None


def load_pack(path: Path) -> Pack:
    """The pack in a file that is needed.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is damaged, or no pack.
    """
    try:
        return _unpacked(path)
    except FileNotFoundError:
        raise
    except UNREADABLE_ARRAYS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is damaged: {reason}") from error


def write_pack(path: Path, pack: Pack) -> None:
    """Write a pack of data; where that fails a warning is logged.

    A folder that cannot be written to costs speed, not the run.
    """
    try:
        save_pack(path, pack)
    except OSError as error:
        _log.warning("%s could not be written, the next load is slower: %s", path, error)


def save_pack(path: Path, pack: Pack) -> None:
    """Write a pack whole or not at all: a temporary file beside it, then one rename.

    Raises:
        OSError: what the system refuses, with ``path`` as its file.
    """
    header = {"source": pack.source, "sha256": _digest(pack.arrays, pack.source)}
    columns: dict[str, Any] = {_HEADER: np.array(json.dumps(header)), **pack.arrays}
    replace_file(path, lambda file: np.savez_compressed(file, **columns))


def _unpacked(path: Path) -> Pack:
    check_regular(path, _LARGEST)
    # Opened here because np.load leaves the file open when it is no archive.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        if sum(member.file_size for member in stored.zip.infolist()) > _LARGEST:
            raise ValueError(f"its arrays claim more than {_LARGEST} bytes")
        header = json.loads(str(stored[_HEADER]))
        arrays = {name: stored[name] for name in stored.files if name != _HEADER}
    if header["sha256"] != _digest(arrays, header["source"]):
        raise ValueError("its checksum does not fit")
    return Pack(arrays, header["source"])


def _digest(arrays: Mapping[str, np.ndarray[Any, Any]], source: str) -> str:
    digest = hashlib.sha256(source.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
