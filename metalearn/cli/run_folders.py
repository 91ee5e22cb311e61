"""A run's folder: its name, its lock, what is removed of it and when."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from metalearn.cli.choice_names import chosen_name
from metalearn.cli.given_settings import plain_value
from metalearn.cli.own_modules import found_object
from metalearn.errors import DataError, SettingError, StorageError
from metalearn.files import lock, remove_partials
from metalearn.signatures import accepted_settings

__all__ = [
    "also_missing",
    "claimed",
    "discard_unused",
    "existing_run",
    "make_new_folder",
    "note_missing",
    "remove_partial_files",
    "run_folder",
    "writing_to",
]

_LOCK = ".lock"
_LOG = "train.log"
_WRITTEN = (_LOCK, _LOG, "metrics.jsonl", "metrics.csv", "tensorboard")
"""What is written to where it is, as the folders of members are; event files are always new ones,
and all else is put in its place whole."""
_OURS = {_LOCK, _LOG, "multirun.yaml"}

_missing: set[Path] = set()
"""Folders, and logs in them, that were not there when a command began."""


def run_folder(
    resume: str | None,
    choices: Mapping[str, str],
    trainer: str,
    task: str | None = None,
    data: str | None = None,
) -> str:
    """The run's folder: that of ``resume``, or a new one named after what is learnt and the time.

    Args:
        resume: folder of an interrupted run.
        choices: of the groups of the configuration.
        trainer: its class, by its full name.
        task: what makes tasks, by its full name; None takes that of the choice.
        data: what makes data, the same.
    """
    if resume is not None:
        return str(existing_run(resume, "resume"))
    on_tasks = "tasks" in accepted_settings(found_object(trainer))
    if on_tasks:
        what = chosen_name("task", choices.get("task"), task)
    else:
        what = f"{chosen_name('data', choices.get('data'), data)}-{choices.get('trainer')}"
    return f"outputs/{what}-{time.strftime('%Y-%m-%d_%H-%M-%S')}"


def make_new_folder(name: str) -> str:
    """A folder of this name, made by this process; one with a number where others were faster."""
    for count in itertools.count(1):
        found = name if count == 1 else f"{name}-{count}"
        folder = Path(found).absolute()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir()
            _missing.update((folder, folder / _LOG))
            return found
    raise AssertionError("numbers have no end")


def existing_run(name: str, setting: str) -> Path:
    """The folder ``name`` if a run stands in it; SettingError otherwise.

    Raises:
        DataError: a run that would write into a file elsewhere, through a link in its folder.
    """
    if not isinstance(name, str) or not name or not (Path(name) / "config.yaml").is_file():
        accepted = "the folder of a run, with its config.yaml, is needed"
        if isinstance(name, str) and name and Path(name).is_dir():
            accepted += "; a run that ended before it had one is started anew"
        raise SettingError(setting, plain_value(name), accepted)
    folder = Path(name)
    members = (place.glob("member_[0-9]*") for place in (folder, folder / "tensorboard"))
    for path in itertools.chain((folder / name for name in _WRITTEN), *members):
        if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):
            raise DataError(f"{path}: a run keeps this itself; it is a link or no file, remove it")
    return folder


@contextmanager
def claimed(folder: Path, setting: str = "hydra.run.dir") -> Iterator[None]:
    """Keep a second process out of a run's folder; the lock goes when the process does.

    Args:
        folder: made if missing.
        setting: that names the folder.

    Raises:
        SettingError: another process is in this folder.
        StorageError: no lock can be written there.
    """
    path = folder / _LOCK
    file = _claim(path, setting)
    try:
        yield
    finally:
        if _is_at(file, path):  # not in a folder that was made anew meanwhile
            path.unlink(missing_ok=True)
        file.close()


def note_missing(folder: Path) -> Collection[Path]:
    """Note what is missing of a folder that is about to be made, and say it."""
    _missing.clear()
    _missing.update(p for p in (folder / _LOG, folder, *folder.parents) if not p.exists())
    return frozenset(_missing)


def also_missing(paths: Collection[Path]) -> None:
    """Take over what another process has noted."""
    _missing.update(paths)


def discard_unused(folder: Path) -> None:
    """Take away what was made for a run that never began, and nothing else.

    That is the folder with those above it and its log, where `note_missing` did not find them.
    """
    if folder / _LOG in _missing:
        (folder / _LOG).unlink(missing_ok=True)
    for path in (folder, *folder.parents):
        new = any(path == missing or missing in path.parents for missing in _missing)
        if not new or not {part.name for part in path.iterdir()} <= _OURS:
            return
        for name in _OURS:
            (path / name).unlink(missing_ok=True)
        try:
            path.rmdir()
        except OSError:  # somebody else has come in
            return


def remove_partial_files(folder: Path) -> None:
    """Remove what killed processes left half written in a folder that is `claimed`."""
    jsons = r"(provenance|results|evaluation|diagnosis)[^/]*\.json"
    remove_partials(folder, rf"config\.yaml|metrics\.(jsonl|csv)|mlflow-run-id\.txt|{jsons}")
    remove_partials(folder / "checkpoints", r".*\.pt")


@contextmanager
def writing_to(folder: Path, advice: str = "") -> Iterator[None]:
    """Turn an error of a file in ``folder`` into one sentence that names the folder and the cause.

    Args:
        folder: of a run.
        advice: what can be done when the cause is mended.

    Raises:
        StorageError: instead of the OSError.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError) or error.filename is None:
            raise
        path = Path(error.filename)
        if path != folder and folder not in path.parents:
            raise
        if not folder.is_dir():
            raise StorageError(f"{folder}: the run's folder is gone") from error
        what = path.relative_to(folder) if path != folder else "it"
        then = f"; {advice}" if advice else ""
        raise StorageError(f"{folder}: {what} cannot be written: {error.strerror}{then}") from error


def _claim(path: Path, setting: str) -> IO[str]:
    """Open and lock a file that is still at its path: its last holder may have taken it away."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
        except FileNotFoundError:  # the folder of a run that never began has just been discarded
            continue
        except OSError as error:
            reason = f"{path.parent}: it cannot be written to: {error.strerror}"
            raise StorageError(reason) from error
        if lock(file) is False:
            file.close()
            accepted = "another process is running in this folder"
            raise SettingError(setting, str(path.parent), accepted)
        if _is_at(file, path):
            return file
        file.close()


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False
