"""Temporary folders of ranks that write nothing: gone with the rank, or at the next start.

Axes: none.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metalearn.files import lock

__all__ = ["rank_folder"]

_PREFIX = "metalearn-rank-"


@contextmanager
def rank_folder() -> Iterator[str]:
    """A folder of this process, which goes with the block.

    A process that is killed leaves its folder; the next one of the same user takes such folders
    away. The lock of a folder, which the system lets go with its process, tells them apart; where
    there are no locks nothing is taken away.
    """
    _remove_left()
    folder, held = _made()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _made() -> tuple[str, int]:
    """A new folder, and what holds its lock."""
    while True:
        folder = tempfile.mkdtemp(prefix=_PREFIX)
        held = os.open(folder, os.O_RDONLY)
        with suppress(OSError):
            lock(held)
        with suppress(OSError):
            if os.path.samestat(os.stat(folder), os.fstat(held)):
                return folder, held
        os.close(held)  # somebody took it away before it was locked


def _remove_left() -> None:
    own = os.getuid() if hasattr(os, "getuid") else None
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            held = os.open(path, flags)
            try:
                if os.fstat(held).st_uid == own and lock(held):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(held)
