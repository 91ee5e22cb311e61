"""A run's folder: its name, its lock, its configuration."""

from __future__ import annotations

import io
import itertools
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from metalearn.cli.building import groups_of
from metalearn.cli.given import Given, plain
from metalearn.cli.saved import CONFIG_VERSION, upgraded
from metalearn.cli.targets import check_targets
from metalearn.errors import DataError, SettingError, StorageError
from metalearn.files import lock, read_regular, remove_partials, replace_file

__all__ = [
    "claimed",
    "discard_unused",
    "existing_run",
    "expect",
    "made_anew",
    "resumed_config",
    "run_folder",
    "saved_config",
    "sweep",
    "used_part",
    "write_config",
    "writing_to",
]

_LOCK = ".lock"
_LOG = "train.log"
_WRITTEN = (_LOCK, _LOG, "metrics.jsonl", "tensorboard")
"""What is written to where it is; all else is put in its place whole."""
_LARGEST = 2**18  # bytes of a configuration: a hundred times what they have
_DEEPEST = 32  # levels of a configuration
_OURS = {_LOCK, _LOG, "multirun.yaml"}

_missing: set[Path] = set()
"""Folders, and logs in them, that were not there when a command began."""


def run_folder(resume: str | None, choices: Mapping[str, str]) -> str:
    """The run's folder: that of ``resume``, or a new one named after what is learnt and the time.

    Args:
        resume: folder of an interrupted run.
        choices: of the groups of the configuration.
    """
    if resume is not None:
        return str(existing_run(resume, "resume"))
    trainer = choices.get("trainer")
    what = choices.get("task") if trainer == "meta" else f"{choices.get('data')}-{trainer}"
    return f"outputs/{what}-{time.strftime('%Y-%m-%d_%H-%M-%S')}"


def made_anew(name: str) -> str:
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
        raise SettingError(setting, plain(name), accepted)
    folder = Path(name)
    for path in (folder / written for written in _WRITTEN):
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


def expect(folder: Path) -> None:
    """Note what is missing of a folder that is about to be made."""
    _missing.clear()
    _missing.update(p for p in (folder / _LOG, folder, *folder.parents) if not p.exists())


def discard_unused(folder: Path) -> None:
    """Take away what was made for a run that never began, and nothing else.

    That is the folder with those above it and its log, where `expect` did not find them.
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


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written in a folder that is `claimed`."""
    jsons = r"(provenance|results|evaluation|diagnosis)[^/]*\.json"
    remove_partials(folder, rf"config\.yaml|metrics\.jsonl|{jsons}")
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


def saved_config(folder: Path, *, trust: bool = False, typed: Collection[str] = ()) -> DictConfig:
    """The configuration that a run was started with.

    Args:
        folder: the run's folder.
        trust: whether it may name anything that can be imported to be called; see
            `metalearn.cli.targets.check_targets`.
        typed: dotted names of settings that are given anew.

    Raises:
        SettingError: a ``trust`` that is neither true nor false.
        DataError: the file cannot be read, or would build what no run of ours builds.
    """
    if not isinstance(trust, bool):
        raise SettingError("trust", trust, "true or false is needed")
    path = folder / "config.yaml"
    try:
        text = read_regular(path, _LARGEST).decode()
        _check_form(text)
        if not trust:
            # As spelt: OmegaConf would already look into interpolations.
            values = yaml.load(text, Loader=yaml.BaseLoader)
            check_targets(values if isinstance(values, dict) else {}, path, typed=typed)
        config = OmegaConf.load(io.StringIO(text))
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise DataError(f"{path}: this file cannot be read as a run's configuration") from error
    if not isinstance(config, DictConfig) or "trainer" not in config:
        raise DataError(f"{path}: a run's configuration has a trainer")
    return upgraded(config, path)


def _check_form(text: str) -> None:
    """Refuse YAML that is small on the disk and large, or without end, in memory."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} levels")


def used_part(config: DictConfig) -> DictConfig:
    """A copy of a configuration without the groups that its trainer has no use for."""
    used = groups_of(config)
    nodes = {str(name): node for name, node in config.items()}
    names = [n for n, node in nodes.items() if not isinstance(node, DictConfig) or n in used]
    return OmegaConf.masked_copy(config, names)


def write_config(folder: Path, config: DictConfig) -> None:
    """Write the resolved configuration into the run's folder."""
    shown = used_part(config)
    shown.resume = None  # where this process began is told by the provenance files
    shown.pop("trust", None)  # no file may ask to be trusted
    with open_dict(shown):
        shown.version = CONFIG_VERSION
    text = OmegaConf.to_yaml(shown, resolve=True)
    path = folder / "config.yaml"
    replace_file(path, lambda file: file.write(text.encode()), make_folder=False)


def resumed_config(config: DictConfig, given: Sequence[Given]) -> DictConfig:
    """The interrupted run's own configuration, with what is given now.

    Raises:
        SettingError: something is given that a resumed run cannot change.
    """
    folder = existing_run(config.resume, "resume")
    typed = [setting.name for setting in given]
    saved = saved_config(folder, trust=plain(config.trust), typed=typed)
    for setting in given:
        name = setting.name
        same = name == "trainer" and config.trainer._target_ == saved.trainer._target_
        if name in ("resume", "trust") or same:
            continue
        free = name in ("device", "test_tasks") or name.startswith("trainer.")
        if setting.removed or not free:
            raise setting.refusal(
                "a resumed run keeps its settings; device, test_tasks and trainer.* may change "
                f"beside resume={config.resume}"
            )
        OmegaConf.update(saved, name, OmegaConf.select(config, name), merge=False)
    return saved
