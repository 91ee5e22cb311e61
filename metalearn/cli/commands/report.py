"""``metalearn report``: one page of a run, or of several side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from metalearn.cli.comparison.comparing import compared
from metalearn.cli.comparison.finding import Finding, find_runs, folders_named
from metalearn.cli.comparison.runs import ComparedRun
from metalearn.cli.error_messages import one_sentence_errors
from metalearn.cli.given_settings import GivenSetting, plain_value
from metalearn.cli.reports.page import page_of_run
from metalearn.cli.reports.several import page_of_runs
from metalearn.cli.reports.story import RunStory, read_story
from metalearn.cli.run_folders import existing_run, make_new_folder, writing_to
from metalearn.errors import SettingError
from metalearn.files import replace_file

__all__ = ["check", "report"]

_NAME = "report.html"
_SETTING = "run"


@one_sentence_errors()
def report(config: DictConfig) -> None:
    """Write a page of one run, or of several, whole or not at all, and say where it is.

    Raises:
        SettingError, DataError: no run there, or one that cannot be read.
        StorageError: the file cannot be written.
    """
    names = _names(config)
    if _is_run(names):
        folder = existing_run(names[0], _SETTING)
        text = page_of_run(read_story(folder, _shown(folder)))
    else:
        found = _found(names)
        folder = Path(names[0])
        text = _page(found, f"Runs of {_shown(folder)}" if len(names) == 1 else "Runs side by side")
    path = _file(config) or _default(folder, alone=len(names) == 1)
    with writing_to(path.parent, "file=<name>.html puts it elsewhere"):
        replace_file(path, lambda file: file.write(text.encode()), make_folder=False)
    print(f"written: {path}")


def check(config: DictConfig, given: Sequence[GivenSetting]) -> None:
    """Refuse what is no run, and a file that cannot be; what runs say is read once, later.

    Raises:
        SettingError: the first of them.
    """
    names = _names(config)
    if len(names) == 1 and not _inside(names[0]):
        existing_run(names[0], _SETTING)
    for name in names:
        folders_named(name, _SETTING)
    _file(config)


def _names(config: DictConfig) -> list[str]:
    runs = plain_value(config.run)
    names = [runs] if isinstance(runs, str) else runs
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        accepted = "the folder of a run is needed, or several: [outputs/a,outputs/b]"
        raise SettingError(_SETTING, runs, accepted)
    return names


def _is_run(names: Sequence[str]) -> bool:
    return len(names) == 1 and (Path(names[0]) / "config.yaml").exists()


def _inside(name: str) -> bool:
    """Whether runs are looked for within what has this name, or fits it as a pattern."""
    path = Path(name)
    return bool(name) and not _is_run([name]) and not path.is_file()


def _found(names: Sequence[str]) -> Finding:
    found = find_runs(names, setting=_SETTING)
    if not found.runs:
        name, why = next(iter(found.passed_over.items()))
        raise SettingError(_SETTING, list(names), f"at least one run is needed; {name}: {why}")
    return found


def _page(found: Finding, title: str) -> str:
    comparison = compared(found.runs, found.passed_over, twice=found.twice)
    return page_of_runs(title, comparison, _story)


def _story(run: ComparedRun) -> RunStory:
    return read_story(Path(run.name), run.name, figures=False)


def _shown(folder: Path) -> str:
    return str(folder) if folder.name else folder.resolve().name


def _default(folder: Path, *, alone: bool) -> Path:
    """Beside what the page is of, or in a new folder where it is of several folders."""
    if alone and folder.is_dir():
        return folder / _NAME
    return Path(make_new_folder(f"outputs/report-{time.strftime('%Y-%m-%d_%H-%M-%S')}")) / _NAME


def _file(config: DictConfig) -> Path | None:
    """Of the page, where one is named."""
    name = plain_value(config.file)
    if name is None:
        return None
    if not isinstance(name, str) or not Path(name).name or Path(name).is_dir():
        raise SettingError("file", name, "the name of a file, or null, is needed")
    if Path(name).suffix not in (".html", ".htm"):
        raise SettingError("file", name, "a name that ends in .html is needed, or null")
    if not Path(name).absolute().parent.is_dir():
        raise SettingError("file", name, "a file in a folder that is there is needed, or null")
    return Path(name)
