"""Runs that are to be compared, found in folders.

Axes: none.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from metalearn.cli.comparison.runs import ComparedRun, read_run
from metalearn.errors import DataError, SettingError

__all__ = ["Finding", "find_runs", "folders_named"]

_DEEPEST = 2  # levels below a folder in which runs are looked for


class Finding(NamedTuple):
    """What folders hold."""

    runs: list[ComparedRun]
    passed_over: dict[str, str]
    """Folder to the reason, in words."""
    twice: list[str]
    """Folders that were named more than once; each counts once."""


def find_runs(
    names: Sequence[str | Path], *, within: Path | None = None, setting: str = "runs"
) -> Finding:
    """The runs in folders, each once, in the order of the names; a sweep's by their numbers.

    Args:
        names: folders of runs, or of folders of runs; patterns where nothing has that very name.
            One that is neither a run nor holds any is passed over, and so is a run that cannot be
            read.
        within: a folder above them, of which the names of runs say nothing.
        setting: by which they are named.

    Raises:
        SettingError: a name of nothing that is there.
    """
    finding = Finding([], {}, [])
    seen: set[Path] = set()
    for name in names:
        for given in folders_named(str(name), setting):
            shut: dict[Path, str] = {}
            places = list(_places(given, _DEEPEST, shut))
            for place, reason in shut.items():
                finding.passed_over[_shown(place, within)] = reason
            if not places and not shut:
                reason = "neither it nor a folder in it has the config.yaml of a run"
                finding.passed_over[str(given)] = reason
            for place in places:
                key, shown = Path(os.path.realpath(place)), _shown(place, within)
                if key in seen:
                    finding.twice.append(shown)
                    continue
                seen.add(key)
                try:
                    finding.runs.append(read_run(place, shown))
                except DataError as error:
                    finding.passed_over[shown] = str(error).removeprefix(f"{place}/")
    return finding


def folders_named(name: str, setting: str = "runs") -> list[Path]:
    """What a name is of, or what fits it as a pattern where nothing has that very name.

    Raises:
        SettingError: neither.
    """
    path = Path(name)
    try:
        there = bool(name) and path.exists()
    except OSError as error:
        if not isinstance(error, PermissionError):
            raise SettingError(
                setting, name, f"no such name can be there: {error.strerror}"
            ) from None
        there = True  # as far as can be told; that it cannot be read is said with the others
    if there:
        return [path]
    found = sorted(glob.glob(name)) if glob.has_magic(name) else []
    if not found:
        raise SettingError(setting, name, "nothing of that name is there; a run's folder is needed")
    return [Path(each) for each in found]


def _places(folder: Path, levels: int, shut: dict[Path, str]) -> Iterator[Path]:
    """The folder itself where a run stands in it, else those in it, in the order of numbers.

    Folders that cannot be looked into are noted in ``shut``, with the reason.
    """
    try:
        is_run = (folder / "config.yaml").exists()
        inside = list(folder.iterdir()) if not is_run and levels and folder.is_dir() else []
    except OSError as error:
        shut[folder] = f"it cannot be looked into: {error.strerror}"
        return
    if is_run:
        yield folder
    for path in sorted(inside, key=_by_number):
        if os.path.isdir(path):  # which raises nothing
            yield from _places(path, levels - 1, shut)


def _shown(place: Path, within: Path | None) -> str:
    return str(place.relative_to(within) if within else place)


def _by_number(path: Path) -> tuple[int, str]:
    number = path.name
    return int(number) if number.isascii() and number.isdigit() and len(number) < 19 else -1, number
