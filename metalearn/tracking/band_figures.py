"""Numbers with the ends of their bands, drawn over a training as it goes on.

Axes: none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from metalearn.percent import is_accuracy
from metalearn.tracking.dashboard import OVERVIEW, of_band, section_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BandFigures"]

_GROWTH = 1.5  # of the records between two drawings of one figure
_SHARE = 0.03  # of the time that drawing may take, beside the first and the last
_DPI = 150


class BandFigures:
    """Figures of the numbers that have bands, which are drawn again as their records grow.

    Drawings become rarer as a training grows longer. Where steps are fast each waits until the one
    before has taken a small share of the time.

    Args:
        bands: title to names of numbers with ends ``<name>_low`` and ``<name>_high``.
        path: JSON lines of which those are taken that are there.
    """

    def __init__(self, bands: Mapping[str, Sequence[str]], path: Path) -> None:
        self._titles = {name: title for title, names in bands.items() for name in names}
        self._kept = {n + end for n in self._titles for end in ("", "_low", "_high")}
        self._records: list[dict[str, float | None]] = []
        self._drawn = 0
        self._began, self._ended = 0.0, -math.inf
        if self._titles:
            for line in path.read_bytes().splitlines():
                with suppress(ValueError, RecursionError):
                    record = json.loads(line)
                    if isinstance(record, dict) and isinstance(record.get("step"), int):
                        self.take(record.pop("step"), record)
            self._drawn = len(self._records)

    def take(self, step: int, values: Mapping[str, float | None]) -> None:
        """Keep what has a band of the records of a step."""
        known = {
            name: float(value)
            for name, value in values.items()
            if name in self._kept and isinstance(value, int | float)
        }
        if known:
            self._records.append({"step": step, **known})

    def due(self) -> dict[str, tuple[int, Figure]]:
        """Step and figure by TensorBoard's name, where there is enough that is new."""
        enough = len(self._records) >= max(2.0, _GROWTH * self._drawn)
        return self.left() if enough and self._rested() else {}

    def left(self) -> dict[str, tuple[int, Figure]]:
        """The same, where there is anything new."""
        if len(self._records) == self._drawn:
            return {}
        from metalearn.tracking.run_curves import curve_figure, curves_of

        self._drawn, self._began = len(self._records), perf_counter()
        step = int(self._records[-1]["step"] or 0)
        found = {}
        for key, parts in curves_of(self._records).items():
            names = [name for part in parts if (name := f"{part}/{key}" if part else key)]
            title = next((self._titles[name] for name in names if name in self._titles), "")
            share = is_accuracy(key)
            words = of_band(names[-1].partition("/")[2], title)
            figure = curve_figure(words, parts, percent=share, linear=share)
            figure.set_dpi(_DPI)
            found[self._tag(names[-1], title)] = (step, figure)
        return found

    def drawn(self) -> None:
        """Say that the figures given last have been drawn, so that the time it took is known."""
        self._ended = perf_counter()

    def _rested(self) -> bool:
        """Whether the last drawing took a small share of the time since its beginning."""
        took = self._ended - self._began  # below 0 where nobody drew them
        return took <= _SHARE * (perf_counter() - self._began)

    def _tag(self, name: str, title: str) -> str:
        """The first number stands in the first section, others where their records do."""
        first, short = next(iter(self._titles)), name.partition("/")[2]
        section = OVERVIEW if short == first.partition("/")[2] else section_of(name)
        return f"{section}/{of_band(short, title)}"
