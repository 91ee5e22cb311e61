"""Whether it pays to draw batches ahead, by what was measured.

Axes: none.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

from metalearn.core.memory import ranks_of_machine

__all__ = ["DrawTimes", "spare_processors"]

_MOST = 4  # threads that are started by themselves
_SKIPPED, _LOOKS = 2, 5  # draws that are slow for being the first; that are looked at
_LEAST = 0.005  # seconds of a draw: threads take Python's lock from one another for as long
_SHARE = 0.2  # of a step, that drawing has to take
_GAIN = 0.95  # of the time of a step, that may be left of it


class DrawTimes:
    """Whether drawing ahead pays: first by what draws and steps take, then by what it has saved."""

    def __init__(self) -> None:
        self._draws: list[float] = []
        self._rests: list[float] = []
        self._last = 0.0

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """A draw by the caller."""
        begin = time.perf_counter()
        yield
        end = time.perf_counter()
        if self._last:
            self._rests.append(begin - self._last)
            self._draws.append(end - begin)
        self._last = end

    def took(self) -> None:
        """A batch is there that was drawn ahead."""
        now = time.perf_counter()
        if self._last:
            self._rests.append(now - self._last)
        self._last = now

    @property
    def draw(self) -> float:
        """Seconds of a draw."""
        return statistics.median(self._draws[_SKIPPED:])

    @property
    def rest(self) -> float:
        """Seconds between two draws."""
        return statistics.median(self._rests[_SKIPPED:])

    @property
    def seen(self) -> bool:
        """Whether there was enough to decide."""
        return len(self._rests) >= _SKIPPED + _LOOKS

    def worth_a_try(self) -> bool:
        """Whether a draw is long, and a notable part of a step."""
        return self.draw >= max(_LEAST, _SHARE * (self.draw + self.rest))

    def saved(self, before: DrawTimes) -> bool:
        """Whether steps are shorter with batches drawn ahead than they were before."""
        return self.rest <= _GAIN * (before.draw + before.rest)


def spare_processors() -> int:
    """How many threads draw where nobody says it: those of this process but one, at most four.

    The processors of a machine are shared by its ranks.
    """
    if hasattr(os, "sched_getaffinity"):
        there = len(os.sched_getaffinity(0))
    else:  # no Linux
        there = os.cpu_count() or 1
    return max(1, min(_MOST, there // ranks_of_machine() - 1))
