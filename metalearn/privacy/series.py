"""Steps of runs as they add up: series of steps that follow each other, by run and mechanism.

Axes: none; a step is a whole number, counted from 0 at the start of its run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from metalearn.privacy.mechanism import Mechanism

__all__ = ["RecordedRun", "Records", "Series", "summed"]


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
    """Mechanisms, and as how many steps of each those count that it has reserved."""


class Series:
    """The steps of one mechanism that one process reserved for a run."""

    def __init__(self, mechanism: Mechanism) -> None:
        self.mechanism = mechanism
        self._ended, self._first, self._next = 0, 0, 0
        self.jumped = False
        """Whether numbers were passed over, as of scores that earlier versions numbered by the
        training's steps, or where lines of a ledger are missing: the last is no place then."""

    def add(self, first: int, count: int) -> None:
        """Add steps; those that begin where the last ended go on with its series."""
        self.jumped |= 0 < self._next < first
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
        self._planned: dict[str, int] = {}
        self._runs: dict[str, tuple[str, str]] = {}

    def __len__(self) -> int:
        return len(self._declared)

    def declare(
        self, run: str, mechanism: Mechanism, *, name: str = "", data: str = "", planned: int = 0
    ) -> int:
        """Open a series of steps; its number."""
        self._planned[run] = max(planned, self._planned.get(run, 0))
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
        """Every mechanism with as how many steps it counts, over all runs, with those `left`."""
        left = [one for run in self._runs for one in self.left(run)]
        return summed([*_together(series for _, series in self._declared), *left])

    def of(self, run: str) -> list[tuple[Mechanism, int]]:
        """What one run has reserved, without those `left`; empty where nothing is known of it."""
        return _together(series for other, series in self._declared if other == run)

    def left(self, run: str, planned: int = 0) -> list[tuple[Mechanism, int]]:
        """What going on from the last step of a run to all that were planned would add.

        Nothing where no step is known, and all where those known are not numbered in a row.
        ``planned`` is how many it is known of otherwise.
        """
        last, planned = self._last.get(run), max(planned, self._planned.get(run, 0))
        if last is None:
            return []
        count = last.counted_until(planned) - last.counted
        if last.jumped:
            count = last.mechanism.counted(0, planned)
        return [(last.mechanism, count)] if count else []

    def runs(self) -> list[RecordedRun]:
        """Every run, in the order in which they began."""
        return [
            RecordedRun(run, name, data, tuple(self.of(run)))
            for run, (name, data) in self._runs.items()
        ]


def summed(steps: Iterable[tuple[Mechanism, int]]) -> list[tuple[Mechanism, int]]:
    """Each mechanism once."""
    counts: dict[Mechanism, int] = {}
    for mechanism, count in steps:
        counts[mechanism] = counts.get(mechanism, 0) + count
    return list(counts.items())


def _together(several: Iterable[Series]) -> list[tuple[Mechanism, int]]:
    return summed((series.mechanism, series.counted) for series in several)
