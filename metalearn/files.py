"""Files written whole or not at all, read without waiting for what is none, and locked."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import socket
import stat
import time
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "UNREADABLE_ARRAYS",
    "alone",
    "append_whole",
    "check_regular",
    "failures_named",
    "lock",
    "read_regular",
    "remove_partials",
    "replace_file",
]

UNREADABLE_ARRAYS: tuple[type[Exception], ...] = (
    OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, EOFError,
    RuntimeError, MemoryError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What comes of reading ``.npy`` and ``.npz`` that are damaged, cut or another thing: numpy reads
headers as Python's own literals."""

_BINARY = getattr(os, "O_BINARY", 0)  # Windows
_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{16}")
_POLL = 0.1  # seconds between two tries of who waits for a lock
_SAID_EVERY = 60.0  # seconds between two sentences of the same waiting
_log = logging.getLogger(__name__)


def check_regular(path: Path, largest: int) -> None:
    """Refuse what is not a regular file of at most ``largest`` bytes, without opening it.

    Raises:
        OSError: as `read_regular`.
    """
    _check(path.stat(), largest)


def read_regular(path: Path, largest: int) -> bytes:
    """The bytes of a regular file, after links are resolved, of at most ``largest`` bytes.

    Raises:
        OSError: no such file, one that is too large, or a pipe, a device, a socket or a folder,
            which may have no end, or make whoever reads them wait.
    """
    check_regular(path, largest)  # first: to open a device can already do something
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    with open(descriptor, "rb") as file:
        _check(os.fstat(descriptor), largest)
        data = file.read(largest + 1) or b""
    if len(data) > largest:
        raise OSError(_too_large(f"more than {largest}", largest))
    return data


def replace_file(
    path: Path, write: Callable[[IO[bytes]], object], *, make_folder: bool = True
) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in the place of ``path``.

    A reader sees the old file or the new one, never a part, whatever ends the process; if ``write``
    raises, the old file stays and the temporary one is removed. What a killed writer of the same
    file has left goes too. The folder is made if missing, unless ``make_folder`` is false.

    Raises:
        OSError: what the system refuses, with ``path`` as its file.
    """
    with failures_named(path):
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        remove_partials(path.parent, re.escape(path.name))
        partial, file = _opened_beside(path)
        try:
            with file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                if path.exists():
                    partial.chmod(path.stat().st_mode & 0o777)
                if fcntl is None:
                    file.close()  # Windows gives no open file another name
                partial.replace(path)  # under its lock: until then it is nobody's leftover
        finally:
            partial.unlink(missing_ok=True)


def append_whole(file: RawIOBase, data: bytes) -> None:
    """Append to an unbuffered file all of ``data`` or, where the disk is full, nothing of it."""
    end = file.seek(0, os.SEEK_END)
    left = memoryview(data)
    try:
        while left:
            left = left[file.write(left) or 0 :]
    except OSError:
        with suppress(OSError):
            file.truncate(end)
        raise


def remove_partials(folder: Path, names: str) -> None:
    """Remove temporary files that killed writers left in a folder, of files whose name fits.

    A file that is still being written is locked by its writer and stays.

    Args:
        folder: one that is missing, or may not be changed, is left as it is.
        names: a regular expression for the whole name of the files that were to be written.
    """
    try:
        found = [entry for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
    except OSError:
        return
    for entry in found:
        parts = _PARTIAL.fullmatch(entry.name)
        if parts and re.fullmatch(names, parts.group(1)):
            try:
                with open(entry.path, "rb") as file:
                    if lock(file):
                        os.unlink(entry.path)
            except OSError:
                continue


def lock(file: IO[Any] | int, *, wait: bool = False) -> bool | None:
    """Lock an open file for as long as it is open, without waiting unless that is said.

    A folder is given by its descriptor.

    Returns:
        True; False where another opening of the file has the lock; None where there are no locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return None
        raise
    return True


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """A block that makes ``path`` and that one process, or thread, at a time is in.

    Whoever comes later waits, and the log says for whom: at once, and as a warning every minute.
    The lock lies beside the file as ``.<name>.lock`` while it is held. It is the system's (flock),
    so that it goes with the process that holds it, however that ends: nobody waits for the dead.
    On network file systems it holds between machines where their server keeps locks (NFS does, if
    its lock service runs), and a machine that is lost keeps it for as long as the server says.
    Where there are no locks, or they fail, or none can be written, everybody is let in, and whole
    files (`replace_file`) are what is left of safety: they are made more than once, and are right.
    So does one who comes after somebody else has removed the lock of who is inside.
    """
    place = path.with_name(f".{path.name}.lock")
    file = _only_holder(path, place)
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):  # before it is closed, so that no other file is taken away
                if _is_at(place, file):
                    place.unlink()
            file.close()


@contextmanager
def failures_named(path: Path) -> Iterator[None]:
    """Give an OSError from inside ``path`` as its file, which that of a write does not have."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _only_holder(path: Path, place: Path) -> IO[bytes] | None:
    """The lock file of what is to be made, locked; None where there are no locks."""
    said: float | None = None
    while True:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            file = place.open("a+b", buffering=0)  # writable: NFS asks for that
        except OSError:
            return None  # whoever makes the file will say why it cannot
        there = False
        try:
            try:
                held = lock(file)
                there = held is True and _is_at(place, file)
            except OSError:
                held = None  # a system that fails to lock has no locks
            if there:
                with suppress(OSError):  # a full disk has no room for a name, and the lock holds
                    file.truncate(0)
                    file.write(f"process {os.getpid()} of {socket.gethostname()}".encode())
                return file
            if held is False and (said is None or time.monotonic() - said > _SAID_EVERY):
                level = logging.INFO if said is None else logging.WARNING
                _log.log(level, "%s is being made by %s, which is waited for", path, _holder(file))
                said = time.monotonic()
        finally:
            if not there:
                file.close()
        if held is None:
            with suppress(OSError):  # Windows removes no file that somebody has open
                place.unlink(missing_ok=True)
            return None
        if held is False:
            time.sleep(_POLL)


def _holder(file: IO[bytes]) -> str:
    """What the holder of a lock has written of itself."""
    try:
        file.seek(0)
        return file.read(200).decode(errors="replace") or "another process"
    except OSError:
        return "another process"


def _is_at(path: Path, file: IO[bytes]) -> bool:
    """Whether an open file is the one that has this name, and not one that was taken away.

    The number of its names does not say that everywhere: NFS gives a file that is removed while it
    is open another name.

    Raises:
        OSError: what the system refuses, but for a name that nothing has.
    """
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _opened_beside(path: Path) -> tuple[Path, IO[bytes]]:
    """A new temporary file of ours, locked."""
    while True:
        # Not tempfile: its files are closed to others, whatever the umask says.
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        file = partial.open("xb")
        try:
            locked = lock(file)
        except OSError:
            locked = None  # a system that fails to lock has no locks
        if locked is None or (locked and _is_at(partial, file)):
            return partial, file
        file.close()  # somebody took it for a leftover before it was locked


def _check(status: os.stat_result, largest: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        raise OSError(f"a {kinds.get(stat.S_IFMT(status.st_mode), 'device')}, not a file")
    if status.st_size > largest:
        raise OSError(_too_large(str(status.st_size), largest))


def _too_large(size: str, largest: int) -> str:
    return f"{size} bytes; at most {largest} are read"
