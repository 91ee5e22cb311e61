"""``metalearn compare``: runs side by side, and where their table goes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from metalearn.cli.comparison.comparing import compared
from metalearn.cli.comparison.files import write_comparison
from metalearn.cli.comparison.finding import Finding, find_runs, folders_named
from metalearn.cli.comparison.tables import comparison_lines
from metalearn.cli.error_messages import one_sentence_errors
from metalearn.cli.given_settings import GivenSetting, plain_value
from metalearn.cli.run_folders import make_new_folder, writing_to
from metalearn.errors import SettingError

__all__ = ["check", "compare"]

_NAME = "compare"


@one_sentence_errors()
def compare(config: DictConfig) -> None:
    """Print the table of runs, and leave it in a folder.

    Raises:
        SettingError, DataError: no runs there.
        StorageError: the folder cannot be written to.
    """
    found = _found(config)
    comparison = compared(found.runs, found.passed_over, twice=found.twice)
    print("\n".join(comparison_lines(comparison, shutil.get_terminal_size().columns)))
    name = plain_value(config.folder)
    if name is None:
        name = make_new_folder(f"outputs/{_NAME}-{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    with writing_to(folder):
        written = write_comparison(folder, _NAME, comparison)
    print(written)


def check(config: DictConfig, given: Sequence[GivenSetting]) -> None:
    """Refuse names of nothing, and a folder that is none; what runs say is read once, later.

    Raises:
        SettingError: the first of them.
    """
    for name in _names(config):
        folders_named(name)
    folder = plain_value(config.folder)
    if folder is not None and (not isinstance(folder, str) or not folder):
        raise SettingError("folder", folder, "the name of a folder, or null, is needed")
    if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
        raise SettingError("folder", folder, "this is a file; a folder, or null, is needed")


def _names(config: DictConfig) -> list[str]:
    runs = plain_value(config.runs)
    names = [runs] if isinstance(runs, str) else runs
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise SettingError("runs", runs, "folders of runs are needed, as [outputs/a,outputs/b]")
    return names


def _found(config: DictConfig) -> Finding:
    names = _names(config)
    found = find_runs(names)
    if not found.runs:
        name, why = next(iter(found.passed_over.items()))
        raise SettingError("runs", names, f"at least one run is needed; {name}: {why}")
    return found
