"""Long stretches of work tell how far they are; whoever wants to show that listens.

Library code shows nothing by itself: without somebody who listens, nobody is told. Axes: none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

__all__ = ["Tell", "Watcher", "stretch", "watched_by"]

Tell = Callable[[int], None]
"""Is called with how much more is done."""

Watcher = Callable[[str, int, str], AbstractContextManager[Tell]]
"""From what is done, how much of it there is and what that is counted in, such as
``("test", 600, "tasks")``, to a block that is told of it."""

_watcher: ContextVar[Watcher | None] = ContextVar("_watcher", default=None)


@contextmanager
def watched_by(watcher: Watcher | None) -> Iterator[None]:
    """A block whose stretches, in this thread, tell ``watcher`` how far they are; None: nobody."""
    before = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(before)


@contextmanager
def stretch(what: str, total: int, unit: str) -> Iterator[Tell]:
    """A block that may take long; it calls what it is given with how much more is done.

    Args:
        what: is done, in a word or two.
        total: how much there is of it.
        unit: what ``total`` counts, in the plural.
    """
    watcher = _watcher.get()
    if watcher is None or total < 1:
        yield lambda more: None
        return
    with watcher(what, total, unit) as tell:
        yield tell
