"""``metalearn report``: one page of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from metalearn.cli.error_messages import one_sentence_errors
from metalearn.cli.given_settings import GivenSetting, plain_value
from metalearn.cli.reports.page import page_of_run
from metalearn.cli.reports.story import read_story
from metalearn.cli.run_folders import existing_run, writing_to
from metalearn.errors import SettingError
from metalearn.files import replace_file

__all__ = ["check", "report"]

_NAME = "report.html"


@one_sentence_errors()
def report(config: DictConfig) -> None:
    """Write a run's page, whole or not at all, and say where it is.

    Raises:
        SettingError, DataError: no run there, or one that cannot be read.
        StorageError: the file cannot be written.
    """
    folder = existing_run(plain_value(config.run), "run")
    path = _file(config, folder)
    name = str(folder) if folder.name else folder.resolve().name
    text = page_of_run(read_story(folder, name))
    with writing_to(path.parent):
        replace_file(path, lambda file: file.write(text.encode()), make_folder=False)
    print(f"written: {path}")


def check(config: DictConfig, given: Sequence[GivenSetting]) -> None:
    """Refuse what is no run, and a file that cannot be.

    Raises:
        SettingError: the first of them.
    """
    _file(config, existing_run(plain_value(config.run), "run"))


def _file(config: DictConfig, folder: Path) -> Path:
    name = plain_value(config.file)
    if name is None:
        return folder / _NAME
    if not isinstance(name, str) or not Path(name).name or Path(name).is_dir():
        raise SettingError("file", name, "the name of a file, or null, is needed")
    if Path(name).suffix not in (".html", ".htm"):
        raise SettingError("file", name, "a name that ends in .html is needed, or null")
    if not Path(name).absolute().parent.is_dir():
        raise SettingError("file", name, "a file in a folder that is there is needed, or null")
    return Path(name)
