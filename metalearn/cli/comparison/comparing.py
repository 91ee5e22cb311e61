"""Runs side by side: those that differ in their seeds alone as one row, with what is known of each.

Axes: S seeds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metalearn.cli.comparison.order import ordered
from metalearn.cli.comparison.rows import SCORE, Row, independent, rows_of
from metalearn.cli.comparison.runs import ComparedRun
from metalearn.cli.comparison.settings import ABSENT, differing_settings, printable

__all__ = ["Comparison", "compared"]

_OF_TESTS = ("task", "data", "ood", "test_tasks")
"""Groups and settings that say what is predicted."""


@dataclass(frozen=True)
class Comparison:
    """A table of runs.

    Attributes:
        rows: in the order in which they are shown.
        order: what decided it, in a sentence.
        notes: what a reader has to know beside the numbers, a sentence each.
        passed_over: folder to the reason why no run of it is here.
    """

    rows: Sequence[Row]
    order: str
    notes: Sequence[str]
    passed_over: Mapping[str, str]

    @property
    def runs(self) -> int:
        """How many there are."""
        return sum(len(row.runs) for row in self.rows)

    @property
    def title(self) -> str:
        """What it is of, and what its intervals are."""
        text = f"{self.runs} run{'s' * (self.runs != 1)}"
        if any(len(row.runs) > 1 for row in self.rows):
            text += "; over seeds, mean and 95 % interval by Student's t"
        return text

    @property
    def settings(self) -> list[str]:
        """Names of those in which rows differ."""
        return list(self.rows[0].settings) if self.rows else []

    @property
    def numbers(self) -> list[str]:
        """Names of the numbers of all rows: scores of validation, then of tests."""
        names = dict.fromkeys(name for row in self.rows for name in row.numbers)
        return sorted(names, key=lambda name: not name.startswith(SCORE))


def compared(
    runs: Sequence[ComparedRun],
    passed_over: Mapping[str, str] | None = None,
    *,
    twice: Sequence[str] = (),
    typed: Sequence[Mapping[str, Any]] | None = None,
) -> Comparison:
    """The table of some runs.

    Args:
        runs: that are compared.
        passed_over: folder to the reason, of those that are not.
        twice: folders that were named more than once.
        typed: of each run, its settings but for seeds as they were typed; None takes what differs
            between their configurations.
    """
    passed_over = dict(passed_over or {})
    if typed is None:
        settings = differing_settings([run.config for run in runs])
    else:
        settings = _as_given(runs, typed)
    rows, repeated = rows_of(runs, settings)
    rows, order = ordered(rows)
    notes = [*_notes(rows), *_repeats(repeated)]
    if twice:
        notes.append(f"Named more than once, and counted once: {', '.join(twice)}.")
    return Comparison(rows, order, [*notes, *_codes(runs)], passed_over)


def _as_given(
    runs: Sequence[ComparedRun], typed: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The typed settings in which runs differ, and others where runs typed alike differ in them.

    Such a setting follows a seed: of ``maml.inner_lr='${seed}'`` all runs were typed alike.
    """
    names = list(dict.fromkeys(name for own in typed for name in own))
    names = [n for n in names if len({str(own.get(n, ABSENT)) for own in typed}) > 1]
    alike: dict[str, list[int]] = {}
    for place, own in enumerate(typed):
        alike.setdefault(repr([str(own.get(name, ABSENT)) for name in names]), []).append(place)
    followers: dict[str, None] = {}
    for places in alike.values():
        for found in differing_settings([runs[place].config for place in places]):
            followers |= dict.fromkeys(found)
    everything = differing_settings([run.config for run in runs]) if followers else [{}] * len(runs)
    return [
        {
            **{name: own.get(name, ABSENT) for name in names},
            **{name: values.get(name, ABSENT) for name in followers},
        }
        for own, values in zip(typed, everything)
    ]


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = []
    names = list(rows[0].settings) if rows else []
    differing = [n for n in names if n.partition(".")[0] in _OF_TESTS]
    if differing:
        which = ", ".join(differing)
        notes.append(
            f"Rows differ in what they were tested on ({which}): which is better, test numbers do "
            "not tell."
        )
    common = [set(row.numbers) for row in rows if row.state is None]
    if common and any(numbers != common[0] for numbers in common):
        notes.append("Runs are of different kinds: a dash stands where one has no such number.")
    for row in rows:
        name, blocks = independent(row.runs)
        if len(blocks) < len(row.runs):
            shown = printable(name)
            notes.append(
                f"Runs that share {shown} are no independent repetitions: of {row.folders}, "
                f"the mean over each value of {shown} counts once ({len(blocks)} in all)."
            )
    lost = [n for row in rows for n, mean in row.numbers.items() if not math.isfinite(mean.mean)]
    if lost:
        shown = ", ".join(dict.fromkeys(lost))
        notes.append(f"Not finite in a run, so that there is no mean: {shown}.")
    without = [row.runs[0].name for row in rows if row.state is None and not row.numbers]
    if without:
        notes.append(f"Finished, but without numbers: {', '.join(without)}.")
    return notes


def _repeats(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(names)
    return [f"Settings and seeds of another run, so no further seed but a row by itself: {shown}."]


def _codes(runs: Sequence[ComparedRun]) -> list[str]:
    codes = Counter(run.code for run in runs if run.code is not None)
    if len(codes) < 2:
        return []
    shown = ", ".join(f"{code} ({n} run{'s' * (n > 1)})" for code, n in codes.items())
    return [f"Runs are of different revisions of the code: {shown}; + marks changes to it."]
