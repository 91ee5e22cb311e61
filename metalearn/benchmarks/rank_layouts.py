"""How many ranks a machine's processors are best shared by, for a training of one's own.

Axes: R ranks.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metalearn.benchmarks.shared_steps import turn
from metalearn.errors import SettingError

__all__ = ["LayoutTiming", "layouts_of", "time_layouts"]

_NO_GAIN = 0.95
"""Share of the one process's time above which ranks are not worth their start."""


@dataclass(frozen=True)
class LayoutTiming:
    """A training step by each layout, ``(R, threads of each)``; the first is one process."""

    milliseconds: Mapping[tuple[int, int], float]
    """Medians over rounds."""
    ratios: Mapping[tuple[int, int], float]
    """Medians over rounds of T ÷ T(one process), both of the same round."""
    refused: Mapping[tuple[int, int], str]
    """Why it cannot be shared by so many."""

    @property
    def best(self) -> tuple[int, int]:
        """The layout to use: one process where none takes less than 0.95 of its time."""
        alone = next(iter(self.ratios))
        found = min(self.ratios, key=lambda layout: self.ratios[layout])
        return found if self.ratios[found] < _NO_GAIN else alone

    def table(self) -> str:
        """Markdown."""
        rows = [
            "| ranks | threads of each | step, ms | ÷ one process |",
            "| --- | --- | --- | --- |",
        ]
        for (ranks, threads), time in self.milliseconds.items():
            ratio = self.ratios[ranks, threads]
            rows.append(f"| {ranks} | {threads} | {time:.2f} | {ratio:.2f} |")
        rows += [
            f"| {ranks} | {threads} | {why} | |" for (ranks, threads), why in self.refused.items()
        ]
        return "\n".join(rows)

    def numbers(self) -> list[dict[str, Any]]:
        """For JSON."""
        return [
            {"ranks": r, "threads": t, "milliseconds": time, "ratio": self.ratios[r, t]}
            for (r, t), time in self.milliseconds.items()
        ] + [{"ranks": r, "threads": t, "refused": why} for (r, t), why in self.refused.items()]

    def sentence(self) -> str:
        """Which is the fastest, and the beginning of the command that uses it."""
        (ranks, threads), (_, alone) = self.best, next(iter(self.ratios))
        threads_each = f"{threads} thread{'s' if threads > 1 else ''}"
        if ranks == 1:
            return f"Fastest: one process of {threads_each}, `python scripts/train.py …`."
        return (
            f"Fastest: {ranks} ranks of {threads_each}, {self.ratios[self.best]:.2f} times what "
            f"one process of {alone} takes: `OMP_NUM_THREADS={threads} torchrun --standalone "
            f"--nproc-per-node={ranks} scripts/train.py …`."
        )


def layouts_of(processors: int) -> list[tuple[int, int]]:
    """One process with all processors, then R = 2, 4, 8, … ranks that share them.

    Args:
        processors: at least 1.
    """
    found, ranks = [(1, processors)], 2
    while ranks <= processors:
        found.append((ranks, processors // ranks))
        ranks *= 2
    return found


def time_layouts(code: str, *, rounds: int, processors: int | None = None) -> LayoutTiming:
    """Time a training, layout by layout and round by round, each in new processes.

    Args:
        code: Python that takes part as one of the ranks that the environment tells of; the first
            prints the numbers of `metalearn.benchmarks.shared_steps.step_times`.
        rounds: at least 1.
        processors: to share; None is all that this process may use.

    Raises:
        SettingError: not even one process can take this training.
        RankError: processes ended without numbers.
    """
    if processors is None:
        usable = hasattr(os, "sched_getaffinity")
        processors = len(os.sched_getaffinity(0)) if usable else os.cpu_count() or 1
    alone, *shared = layouts_of(processors)
    taken: dict[tuple[int, int], list[float]] = {alone: []}
    refused: dict[tuple[int, int], str] = {}
    for _ in range(rounds):
        taken[alone].append(turn(code, *alone)[0]["step"])
        for layout in shared:
            if layout in refused:
                continue
            try:
                time = turn(code, *layout)[0]["step"]
            except SettingError as error:
                refused[layout] = str(error)
                continue
            taken.setdefault(layout, []).append(time)
    ratios = {
        layout: statistics.median(time / one for time, one in zip(times, taken[alone]))
        for layout, times in taken.items()
    }
    medians = {layout: 1e3 * statistics.median(times) for layout, times in taken.items()}
    return LayoutTiming(medians, ratios, refused)
