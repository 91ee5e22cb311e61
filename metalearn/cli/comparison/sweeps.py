"""What a sweep comes to: the table of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from metalearn.cli.comparison.comparing import compared
from metalearn.cli.comparison.files import write_comparison
from metalearn.cli.comparison.runs import find_runs
from metalearn.cli.comparison.settings import typed_settings
from metalearn.cli.comparison.tables import comparison_lines

__all__ = ["summarize_sweep"]

_NAME = "sweep"


def summarize_sweep(
    folder: Path, typed: Mapping[str, Sequence[str]] | None = None, *, width: int = 100
) -> list[str]:
    """A table of the runs in a sweep's folder, in words, which is also written there.

    Empty where there are not two that are finished.

    Args:
        folder: of the sweep.
        typed: of each run, by the name of its folder, the settings as they were typed, by which
            the table names runs; without it, all settings in which runs differ do.
        width: of a line, in characters.
    """
    if not folder.is_dir():
        return []
    found = find_runs([folder], within=folder)
    if sum(run.state is None for run in found.runs) < 2:
        return []
    typed = typed or {}
    own = [typed_settings(typed[run.name]) for run in found.runs if run.name in typed]
    comparison = compared(
        found.runs, found.passed_over, typed=own if len(own) == len(found.runs) else None
    )
    written = write_comparison(folder, _NAME, comparison)
    return [*comparison_lines(comparison, width), written]
