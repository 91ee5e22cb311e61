"""Files written whole or not at all, and read without waiting for what is none."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO

_BINARY = getattr(os, "O_BINARY", 0)  # Windows

__all__ = ["read_regular", "replace_file"]


def read_regular(path: Path, largest: int) -> bytes:
    """The bytes of a regular file, after links are resolved, of at most ``largest`` bytes.

    Raises:
        OSError: no such file, one that is too large, or a pipe, a device, a socket or a folder,
            which may have no end, or make whoever reads them wait.
    """
    _check_regular(path.stat(), largest)  # to open a device can already do something
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    with open(descriptor, "rb") as file:
        _check_regular(os.fstat(descriptor), largest)
        data = file.read(largest + 1) or b""
    if len(data) > largest:
        raise OSError(_too_large(f"more than {largest}", largest))
    return data


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in the place of ``path``.

    A reader sees the old file or the new one, never a part, whatever ends the process; if ``write``
    raises, the old file stays and the temporary one is removed. The folder is made if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are closed to others, whatever the umask says.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with partial.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            partial.chmod(path.stat().st_mode & 0o777)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _check_regular(status: os.stat_result, largest: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        raise OSError(f"a {kinds.get(stat.S_IFMT(status.st_mode), 'device')}, not a file")
    if status.st_size > largest:
        raise OSError(_too_large(str(status.st_size), largest))


def _too_large(size: str, largest: int) -> str:
    return f"{size} bytes; at most {largest} are read"
