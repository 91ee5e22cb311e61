"""Where compiled code is kept between processes, and how long it took to make.

Axes: none.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from metalearn.errors import StorageError
from metalearn.files import read_regular, replace_file

__all__ = ["compiled_folder", "keeping_compiled", "remember_seconds", "remembered_seconds"]

_OF_TORCH = "TORCHINDUCTOR_CACHE_DIR"
_LARGEST = 2**22  # bytes, of some ten thousand graphs


def compiled_folder() -> Path:
    """The folder of compiled code: of the user's own, and readable by nobody else.

    ``METALEARN_CACHE`` names it; by default it is ``metalearn/compiled`` under ``XDG_CACHE_HOME``
    or ``~/.cache``. torch reads what is there with pickle, so that whoever may write to it may run
    code: it is made with mode 0700, and one that others may write to is refused. Each kind of
    processor has a folder of its own in it, as a home may be shared by several.

    Raises:
        StorageError: it cannot be made, or is open to others.
    """
    given = os.environ.get("METALEARN_CACHE")
    try:
        base = Path(given or os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError as error:
        accepted = "a folder for compiled code is needed where there is no home directory"
        raise StorageError(f"METALEARN_CACHE={given!r}: {accepted}") from error
    folder = (base if given else base / "metalearn") / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"{folder}: compiled code cannot be kept there ({reason})") from error
    owned = os.name == "nt" or (found.st_uid == os.getuid() and not found.st_mode & 0o077)
    if not stat.S_ISDIR(found.st_mode) or not owned:
        needed = (
            "compiled code is read with pickle, so a folder of your own with mode 0700 is needed"
        )
        raise StorageError(f"{folder}: {needed}")
    own = folder / _processor()
    with suppress(OSError):  # else the compiler says what it cannot write
        own.mkdir(mode=0o700, exist_ok=True)
    return own


@cache
def _processor() -> str:
    """A name for this kind of processor, by what it can do: code is made for that."""
    known = [platform.machine(), platform.processor()]
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        said = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
        known += sorted(set(said))
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:12]


@contextmanager
def keeping_compiled(folder: Path) -> Iterator[None]:
    """A block in which torch's compiler keeps its code in a folder."""
    before = os.environ.get(_OF_TORCH)
    os.environ[_OF_TORCH] = str(folder)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_OF_TORCH, None)
        else:
            os.environ[_OF_TORCH] = before


def remembered_seconds(folder: Path) -> dict[str, float]:
    """How long it took the last time, by the digest of a graph; nothing where none is readable."""
    try:
        found = json.loads(read_regular(folder / "seconds.json", _LARGEST))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, Mapping):
        return {}
    numbers = {str(k): v for k, v in found.items() if type(v) in (int, float) and 0 <= v <= 1e9}
    return {name: float(value) for name, value in numbers.items()}


def remember_seconds(folder: Path, digest: str, seconds: float) -> None:
    """Note how long it took; where that cannot be written, nothing is lost but the guess."""
    known = {**remembered_seconds(folder), digest: round(seconds, 3)}
    with suppress(OSError):
        replace_file(folder / "seconds.json", lambda file: file.write(json.dumps(known).encode()))
