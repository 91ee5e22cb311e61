"""Rows of a comparison: runs that differ in their seeds alone, and the means over these.

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
from metalearn.cli.comparison.settings import ABSENT, as_typed, key_of, printable, seeds_of
from metalearn.evaluation.seeds import SeedMean, mean_over_seeds

__all__ = ["SCORE", "Row", "independent", "rows_of"]

SCORE = "best/"
"""Beginning of the names of validation scores."""


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
        names = [name for name in self.numbers if name.startswith(SCORE)]
        return names[0] if names and names[0] != f"{SCORE}step" else None

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


def rows_of(
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


def independent(runs: Sequence[ComparedRun]) -> tuple[str, list[list[ComparedRun]]]:
    """The name of the seed by which runs are taken together, and those of each of its values.

    Runs that share one of several seeds are no independent repetitions; of seeds that vary it is
    the one with the fewest values, so that no interval is narrower than the runs allow.
    """
    of_each = [{"seed": run.seed} | seeds_of(run.config) for run in runs]
    found: tuple[str, list[list[ComparedRun]]] = ("seed", [[run] for run in runs])
    for name in dict.fromkeys(name for own in of_each for name in own):
        blocks: dict[str, list[ComparedRun]] = {}
        for run, own in zip(runs, of_each):
            blocks.setdefault(key_of(own.get(name, ABSENT)), []).append(run)
        if 1 < len(blocks) < len(found[1]):
            found = name, list(blocks.values())
    return found


def _means(runs: Sequence[ComparedRun]) -> dict[str, SeedMean]:
    """Of the numbers that all runs have; NaN where one is not finite, or their sum would not be."""
    names = [n for n in runs[0].numbers if all(n in run.numbers for run in runs)]
    _, blocks = independent(runs)
    return {
        name: _mean([_mean([run.numbers[name] for run in block]).mean for block in blocks])
        for name in names
    }


def _mean(values: Sequence[float]) -> SeedMean:
    if all(map(math.isfinite, values)):
        with suppress(OverflowError):
            return mean_over_seeds(values)
    return SeedMean(math.nan, math.nan, math.nan)
