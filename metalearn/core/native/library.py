"""The C++ of this room, compiled for this processor and kept for later processes.

Axes: none.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from metalearn.core.compilation.folder import compiled_folder
from metalearn.errors import SettingError
from metalearn.files import read_regular, replace_file

__all__ = ["WITHOUT", "library"]

_SOURCES = [
    Path(__file__).with_name(name) for name in ("columns.cpp", "moments.cpp", "pooling.cpp")
]
_FLAGS = shlex.split(
    "-O3 -march=native -std=c++17 -fno-math-errno -fno-trapping-math -fopenmp -shared -fPIC"
    " -fvisibility=default"
)
_PATIENCE = 120.0  # seconds for what takes four
_LARGEST = 2**24  # bytes of what is loaded, some 60 kB

WITHOUT = "no compiled kernels, so torch's own operations are taken: %s"

_log = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()


def library() -> ctypes.CDLL | None:
    """The compiled functions, made at the first call on this machine; None where they cannot be.

    Linux with g++ or clang++ is needed (``CXX`` names another compiler), and a folder of the user's
    own, see `compiled_folder`. ``METALEARN_KERNELS=never`` does without. Why there are none is
    logged.

    Raises:
        SettingError: ``METALEARN_KERNELS`` is neither ``auto`` nor ``never``.
    """
    with _one_at_a_time:
        return _library()


@cache
def _library() -> ctypes.CDLL | None:
    wanted = os.environ.get("METALEARN_KERNELS") or "auto"
    if wanted not in ("auto", "never"):
        raise SettingError("METALEARN_KERNELS", wanted, "one of auto, never is needed")
    if wanted == "never" or sys.platform != "linux":
        return None
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        _log.info(WITHOUT, "no C++ compiler (g++ or clang++) is there")
        return None
    try:
        return _loaded([*shlex.split(compiler), *_FLAGS], compiled_folder())
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        _log.info(WITHOUT, f"{type(error).__name__}: {error}")
        return None


def _loaded(command: list[str], folder: Path) -> ctypes.CDLL:
    """From the folder, where the same sources and command were there before."""
    said = [*map(os.fsencode, command), *(source.read_bytes() for source in _SOURCES)]
    file = folder / f"kernels-{hashlib.sha256(bytes(1).join(said)).hexdigest()[:16]}.so"
    if not _is_whole(file):
        with _alone(folder):
            if not _is_whole(file):
                _compile(command, file)
    try:
        return ctypes.CDLL(str(file))
    except OSError:  # damaged, with a checksum of the damage; or nothing can be loaded from there
        refused = file.with_suffix(".refused")
        with _alone(folder):
            if _says(refused, file):
                raise
            _compile(command, file)
            replace_file(refused, lambda to: to.write(_digest(file).encode()))
        found = ctypes.CDLL(str(file))
        refused.unlink(missing_ok=True)
        return found


def _is_whole(file: Path) -> bool:
    """Whether it is there as it was written: loading half a file ends the process."""
    return _says(file.with_suffix(".sha256"), file)


def _says(note: Path, file: Path) -> bool:
    """Whether a note holds the digest of a file."""
    try:
        return _digest(file) == read_regular(note, 100).decode()
    except (OSError, ValueError):
        return False


def _digest(file: Path) -> str:
    return hashlib.sha256(read_regular(file, _LARGEST)).hexdigest()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A block that one process at a time is in."""
    import fcntl  # not on Windows

    with (folder / "kernels.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob("kernels-*/"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        yield


def _compile(command: list[str], file: Path) -> None:
    """Whole or not at all, also where two processes do so at once."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=file.parent, prefix="kernels-") as scratch:
        made = Path(scratch) / file.name
        _run([*command, *map(str, _SOURCES), "-o", str(made)])
        replace_file(file.with_suffix(".sha256"), lambda to: to.write(_digest(made).encode()))
        replace_file(file, lambda to: to.write(made.read_bytes()))
    _log.info("kernels compiled in %.1f s: %s", time.perf_counter() - start, file)


def _run(line: list[str]) -> None:
    """To its end, or to that of patience, and then with all that it started."""
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(line, start_new_session=True, stdout=nowhere, stderr=nowhere) as process:
        try:
            code = process.wait(_PATIENCE)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if code:
        raise subprocess.CalledProcessError(code, line[0])
