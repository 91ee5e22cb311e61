"""What a sweep comes to: the table of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from metalearn.cli.comparison.comparing import compared
from metalearn.cli.comparison.files import write_comparison
from metalearn.cli.comparison.finding import find_runs
from metalearn.cli.comparison.settings import typed_settings
from metalearn.cli.comparison.tables import comparison_lines

__all__ = ["SweepSummary", "summarize_sweep"]

_NAME = "sweep"


class SweepSummary(NamedTuple):
    """What is to be said of a sweep."""

    lines: list[str]
    """Its table in words; empty where it has no runs."""
    failed: str | None
    """A sentence where it has runs and none of them is finished."""


def summarize_sweep(
    folder: Path, typed: Mapping[str, Sequence[str]] | None = None, *, width: int = 100
) -> SweepSummary:
    """A table of the runs in a sweep's folder, in words, which is also written there.

    Args:
        folder: of the sweep.
        typed: of each run, by the name of its folder, the settings as they were typed, by which
            the table names runs; without it, or where runs are missing in it, all settings in
            which runs differ do.
        width: of a line, in characters.
    """
    if not folder.is_dir():
        return SweepSummary([], None)
    found = find_runs([folder], within=folder)
    if not found.runs:
        return SweepSummary([], None)
    typed = typed or {}
    own = [typed_settings(typed[run.name]) for run in found.runs if run.name in typed]
    comparison = compared(
        found.runs, found.passed_over, typed=own if len(own) == len(found.runs) else None
    )
    written = write_comparison(folder, _NAME, comparison)
    failed = None
    if all(run.state is not None for run in found.runs):
        failed = f"{folder}: no run of this sweep is finished; the lines above say what ended them"
    return SweepSummary([*comparison_lines(comparison, width), written], failed)
