"""Arrays of bytes that lie in a file, mapped into memory.

Axes: free.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from metalearn.errors import DataError

__all__ = ["check_machine", "mapped"]

_USUAL = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if _USUAL else 0)  # Python names it from 3.13
_MACHINES = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)


def mapped(
    file: IO[bytes], start: int, shape: Sequence[int]
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The uint8 array ``shape`` that begins ``start`` bytes after the beginning of an open file.

    The processes of a machine share the one copy that the system keeps of the file; what one writes
    to its array stays its own, and is written nowhere. Nothing is set aside for that, so that a
    file may be larger than the memory (Linux; where ``vm.overcommit_memory`` is 2 all is).

    Raises:
        ValueError: the file ends before the array.
        OSError: what the system refuses, see `check_machine`.
    """
    before = start % mmap.ALLOCATIONGRANULARITY
    size = math.prod(shape)
    if os.fstat(file.fileno()).st_size < start + size:
        raise ValueError(f"it ends before its array {tuple(shape)} does")
    if not size:
        return np.zeros(tuple(shape), np.uint8)
    if sys.platform == "win32":
        how: dict[str, int] = {"access": mmap.ACCESS_COPY}
    else:
        protection = mmap.PROT_READ | mmap.PROT_WRITE  # torch takes no array of another kind
        how = {"flags": mmap.MAP_PRIVATE | _NO_RESERVE, "prot": protection}
    memory = mmap.mmap(file.fileno(), before + size, offset=start - before, **how)
    return np.frombuffer(memory, np.uint8, size, before).reshape(tuple(shape))


def check_machine(path: Path, error: BaseException) -> None:
    """Refuse to go on where it was the machine that failed to read a file, and not the file.

    Raises:
        DataError: there is no memory, or there are too many open files.
    """
    if isinstance(error, MemoryError):
        raise DataError(
            f"{path}: there is no memory to read it ({error}); it is not damaged"
        ) from error
    if isinstance(error, OSError) and error.errno in _MACHINES:
        raise DataError(
            f"{path} cannot be mapped into memory ({error.strerror}): it is not damaged, and "
            "limits of this process (ulimit -v, ulimit -n) or of the machine "
            "(vm.overcommit_memory) have to leave room for it"
        ) from error
