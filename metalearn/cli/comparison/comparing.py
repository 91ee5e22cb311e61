"""Runs side by side: those that differ in their seeds alone as one row, with what is known of each.

Axes: S seeds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalearn.cli.comparison.runs import ComparedRun, Span
from metalearn.cli.comparison.settings import (
    ABSENT,
    as_typed,
    differing_settings,
    key_of,
    printable,
    seeds_of,
)
from metalearn.evaluation.seeds import SeedMean, mean_over_seeds

__all__ = ["Comparison", "Row", "compared", "is_share"]

_SCORE = "best/"
_SHARES = ("accuracy", "coverage")
_LARGER, _SMALLER = ("accuracy",), ("loss", "nll", "objective")
_SIZES = ("way", "shot", "query", "split")
_OF_TESTS = ("task", "data", "ood", "test_tasks")
"""Groups and settings that say what is predicted."""


@dataclass(frozen=True)
class Row:
    """One run, or several that differ in their seeds alone.

    Attributes:
        settings: in which rows differ; `ABSENT` where its runs have none.
        runs: one for each seed.
        numbers: that all its runs have, over seeds.
    """

    settings: Mapping[str, Any]
    runs: Sequence[ComparedRun]
    numbers: Mapping[str, SeedMean]

    @property
    def state(self) -> str | None:
        """How far it is, of a run that is not finished."""
        return self.runs[0].state

    @property
    def score(self) -> str | None:
        """Name of the validation score that chose its states; None where none did."""
        names = [name for name in self.numbers if name.startswith(_SCORE)]
        return names[0] if names and names[0] != f"{_SCORE}step" else None

    @property
    def seeds(self) -> str:
        """Its seeds, in words; of runs of one seed, another that tells them apart."""
        of_each = [{"seed": run.seed} | seeds_of(run.config) for run in self.runs]
        names = [n for n in of_each[0] if len({str(own.get(n)) for own in of_each}) > 1]
        name = names[0] if names else "seed"
        shown = ", ".join(as_typed(own.get(name, ABSENT)) for own in of_each)
        return shown if name == "seed" else f"{printable(name)}: {shown}"

    @property
    def folders(self) -> str:
        """Of its runs, as a shell would take them where they stand in one folder."""
        paths = [Path(run.name) for run in self.runs]
        if len(paths) > 1 and len({path.parent for path in paths}) == 1 and paths[0].parent.name:
            return f"{paths[0].parent}/{{{','.join(path.name for path in paths)}}}"
        return ", ".join(map(str, paths))

    def interval(self, name: str) -> Span | None:
        """Of a number, over seeds where there are several, else over what the run was tested on."""
        if name not in self.numbers:
            return None
        mean, half, _ = self.numbers[name]
        if len(self.runs) == 1:
            return self.runs[0].spans.get(name)
        return Span(mean - half, mean + half, "seeds") if math.isfinite(half) else None


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
        return sorted(names, key=lambda name: not name.startswith(_SCORE))


def is_share(name: str) -> bool:
    """Whether a number is a share, which is shown in per cent."""
    return any(share in name for share in _SHARES)


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
        names = list(dict.fromkeys(name for own in typed for name in own))
        names = [n for n in names if len({str(own.get(n, ABSENT)) for own in typed}) > 1]
        settings = [{name: own.get(name, ABSENT) for name in names} for own in typed]
    rows, repeated = _rows(runs, settings)
    rows, order = _ordered(rows)
    notes = [*_notes(rows), *_repeats(repeated)]
    if twice:
        notes.append(f"Named more than once, and counted once: {', '.join(twice)}.")
    return Comparison(rows, order, [*notes, *_codes(runs)], passed_over)


def _rows(
    runs: Sequence[ComparedRun], settings: Sequence[Mapping[str, Any]]
) -> tuple[list[Row], list[str]]:
    """The rows, and the names of runs whose settings and seeds another has too.

    Such a run is no further seed: a row of its own has it. So has one that is not finished.
    """
    groups: dict[Any, list[int]] = {}
    times: Counter[Any] = Counter()
    repeated = []
    for index, (run, own) in enumerate(zip(runs, settings)):
        alike = (tuple(key_of(value) for value in own.values()), run.state and run.name)
        known = (alike, key_of({"": run.seed} | seeds_of(run.config)))
        if times[known]:
            repeated.append(run.name)
        groups.setdefault((alike, times[known]), []).append(index)
        times[known] += 1
    rows = []
    for places in groups.values():
        several = [runs[place] for place in places]
        rows.append(Row(settings[places[0]], several, _means(several)))
    return rows, repeated


def _means(runs: Sequence[ComparedRun]) -> dict[str, SeedMean]:
    """Of the numbers that all runs have; NaN where one is not finite, or their sum would not be."""
    names = [n for n in runs[0].numbers if all(n in run.numbers for run in runs)]
    return {name: _mean([run.numbers[name] for run in runs]) for name in names}


def _mean(values: Sequence[float]) -> SeedMean:
    if all(map(math.isfinite, values)):
        with suppress(OverflowError):
            return mean_over_seeds(values)
    return SeedMean(math.nan, math.nan, math.nan)


def _ordered(rows: Sequence[Row]) -> tuple[list[Row], str]:
    """Rows by their validation score, where one goes for all, and what decided the order.

    Test scores decide nothing: the best of several by its test score is better than it will be.
    """
    done = [row for row in rows if row.state is None]
    scores = {row.score for row in done}
    score = scores.pop() if len(scores) == 1 else None
    larger = None if score is None else _larger_is_better(score)
    last = ""
    if len(done) < len(rows):
        last = "; runs that are not finished come last"
    if len(rows) < 2:
        return list(rows), "There is one row."
    if score is None or larger is None or _tests_differ(done):
        reason = "not all have the same validation score"
        if score is not None:
            reason = "their tasks or data differ"
        return list(rows), f"Rows stand in the order in which they were found: {reason}."
    sign = -1 if larger else 1

    def place(row: Row) -> tuple[bool, float]:
        found = math.nan if row.state else row.numbers[score].mean
        return row.state is not None, sign * found if math.isfinite(found) else math.inf

    best = "the highest" if larger else "the lowest"
    ordered = sorted(rows, key=place)
    return ordered, f"Rows stand in the order of {score} (validation), {best} first{last}."


def _larger_is_better(score: str) -> bool | None:
    if any(name in score for name in _LARGER):
        return True
    return False if any(name in score for name in _SMALLER) else None


def _tests_differ(rows: Sequence[Row]) -> bool:
    """Whether rows are of different tasks or data, whatever setting has brought that about."""
    return any(
        len({key_of(_choice_of(run.config.get(name))) for row in rows for run in row.runs}) > 1
        for name in ("task", "data")
    )


def _choice_of(node: Any) -> Any:
    """What a group builds, and the sizes that say how hard it is."""
    if not isinstance(node, Mapping):
        return node
    return {name: node.get(name) for name in ("_target_", *_SIZES)}


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
