"""Running a study: each seed once, its result kept."""

from __future__ import annotations

from pathlib import Path

from metalearn.studies.registry import Study
from metalearn.studies.results import StudyResult
from metalearn.tracking import provenance, write_json

__all__ = ["StudyRunner"]


class StudyRunner:
    """Runs studies; what a folder keeps is not run again.

    Args:
        folder: keeps ``<study>-seed<s>.json`` of what is finished.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def kept(self, study: Study, seed: int) -> Path:
        """The file of what a study gave."""
        return self.folder / f"{study.name}-seed{seed}.json"

    def run(self, study: Study, seed: int) -> StudyResult:
        """Run a seed of a study and keep the result.

        Raises:
            SettingError, DataError: data that cannot be had.
            OSError: the result cannot be written.
        """
        rows = study.run(seed)
        made = provenance()
        git, cpu = made["git"], made["cpu"]
        assert isinstance(cpu, dict)
        revision = str(git["revision"])[:7] if isinstance(git, dict) else "unknown"
        threads = cpu["threads"]
        machine = f"{cpu['name']}, {threads} thread{'s' * (threads > 1)}"
        found = StudyResult(study.name, seed, rows.numbers, rows.chosen, revision, machine)
        write_json(self.kept(study, seed), found.as_json())
        return found
