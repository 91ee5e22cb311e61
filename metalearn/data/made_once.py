"""What takes long to make, made by one process while others wait.

Axes: none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from metalearn.files import alone

__all__ = ["made_once"]

T = TypeVar("T")


def made_once(path: Path, read: Callable[[], T | None], make: Callable[[], T]) -> T:
    """What is read, or where there is nothing, what one process or thread at a time makes.

    Where making fails, whoever waited tries in turn, and fails by itself: what one process lacks
    (memory, a download, the right to read) the next may have.

    Args:
        path: the file that is written last: when it changes there is something new to read.
        read: gives what there is, or None, also where it is damaged.
        make: makes it, and gives it back.
    """
    before = _state(path)
    found = read()
    if found is not None:
        return found
    with alone(path):
        if _state(path) != before:  # somebody was faster
            found = read()
        return make() if found is None else found


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
