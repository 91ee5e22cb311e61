"""Steps of runs as they add up: series of steps that follow each other, by run and mechanism.

Axes: none; a step is a whole number, counted from 0 at the start of its run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from metalearn.privacy.mechanism import Mechanism

__all__ = ["RecordedRun", "Records", "Series"]


@dataclass(frozen=True)
class RecordedRun:
    """What is written down of a run."""

    run: str
    """Its random identity."""
    name: str
    """What it was called, such as the name of its folder; perhaps empty."""
    data: str
    """A checksum of the training data, the last one that was given; perhaps empty."""
    steps: tuple[tuple[Mechanism, int], ...]
    """Mechanisms, and as how many steps of each it counts."""


class Series:
    """The steps of one mechanism that one process reserved for a run."""

    def __init__(self, mechanism: Mechanism) -> None:
        self.mechanism = mechanism
        self._ended, self._first, self._next = 0, 0, 0

    def add(self, first: int, count: int) -> None:
        """Add steps; those that begin where the last ended go on with its series."""
        if first != self._next:
            self._ended, self._first = self.counted, first
        self._next = first + count

    @property
    def counted(self) -> int:
        """As how many steps they count: a step that was taken twice counts twice."""
        return self.counted_until(self._next)

    def counted_until(self, step: int) -> int:
        """The same if those before ``step`` were added too that follow the last one."""
        beyond = max(self._next, step)
        return self._ended + self.mechanism.counted(self._first, beyond - self._first)


class Records:
    """What was declared and reserved, in memory.

    A declaration is of one run and one mechanism by one process, and has the next number from 0.
    """

    def __init__(self) -> None:
        self._declared: list[tuple[str, Series]] = []
        self._last: dict[str, Series] = {}  # of a run, the one that was added to last
        self._runs: dict[str, tuple[str, str]] = {}

    def __len__(self) -> int:
        return len(self._declared)

    def declare(self, run: str, mechanism: Mechanism, *, name: str = "", data: str = "") -> int:
        """Open a series of steps; its number."""
        known = self._runs.get(run, ("", ""))
        self._runs[run] = (name or known[0], data or known[1])
        self._declared.append((run, Series(mechanism)))
        return len(self._declared) - 1

    def reserve(self, number: int, first: int, count: int) -> None:
        """Add steps to a declaration."""
        run, series = self._declared[number]
        series.add(first, count)
        self._last[run] = series

    def composed(self) -> list[tuple[Mechanism, int]]:
        """Every mechanism with as how many steps it counts, over all runs."""
        return _together(series for _, series in self._declared)

    def of(self, run: str) -> list[tuple[Mechanism, int]]:
        """The same of one run; empty where nothing is known of it."""
        return _together(series for other, series in self._declared if other == run)

    def missing(self, run: str, steps: int) -> list[tuple[Mechanism, int]]:
        """What would be added to a run by going on from its last step to so many steps in all."""
        if run not in self._last:
            return []
        last = self._last[run]
        return [(last.mechanism, last.counted_until(steps) - last.counted)]

    def runs(self) -> list[RecordedRun]:
        """Every run, in the order in which they began."""
        return [
            RecordedRun(run, name, data, tuple(self.of(run)))
            for run, (name, data) in self._runs.items()
        ]


def _together(several: Iterable[Series]) -> list[tuple[Mechanism, int]]:
    counts: dict[Mechanism, int] = {}
    for series in several:
        counts[series.mechanism] = counts.get(series.mechanism, 0) + series.counted
    return list(counts.items())
