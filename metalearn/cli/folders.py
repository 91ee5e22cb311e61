"""A run's folder: its name, its lock, its configuration."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from metalearn.cli.building import groups_of
from metalearn.errors import DataError, SettingError
from metalearn.files import replace_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "claimed",
    "discard_if_empty",
    "existing_run",
    "resumed_config",
    "run_folder",
    "saved_config",
    "used_part",
    "write_config",
]

_LOCK = ".lock"
_LOG = "train.log"


def run_folder(resume: str | None, choices: Mapping[str, str]) -> str:
    """The run's folder: that of ``resume``, or a new one named after what is learnt and the time.

    Args:
        resume: folder of an interrupted run.
        choices: of the groups of the configuration.
    """
    if resume is not None:
        return str(existing_run(resume, "resume"))
    meta = choices["trainer"] == "meta"
    what = choices["task"] if meta else f"{choices['data']}-{choices['trainer']}"
    folder = name = f"outputs/{what}-{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    count = 1
    while Path(folder).exists():
        count += 1
        folder = f"{name}-{count}"
    return folder


def existing_run(name: str, setting: str) -> Path:
    """The folder ``name`` if a run stands in it; SettingError otherwise."""
    folder = Path(name)
    if not (folder / "config.yaml").is_file():
        raise SettingError(setting, name, "the folder of a run, with its config.yaml, is needed")
    return folder


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep a second process out of a run's folder; the lock goes when the process does."""
    if fcntl is None:
        yield
        return
    path = folder / _LOCK
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingError(
                "hydra.run.dir", str(folder), "another process is running in this folder"
            ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def discard_if_empty(folder: Path) -> None:
    """Take away the folder of a run that never began, if it holds nothing but our log and lock."""
    ours = {_LOCK, _LOG}
    if folder.resolve() == Path.cwd() or not {path.name for path in folder.iterdir()} <= ours:
        return
    for name in ours:
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()


def saved_config(folder: Path) -> DictConfig:
    """The configuration that a run was started with; DataError where it cannot be read."""
    path = folder / "config.yaml"
    try:
        config = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: this file cannot be read as a run's configuration") from error
    if not isinstance(config, DictConfig) or "trainer" not in config:
        raise DataError(f"{path}: a run's configuration has a trainer")
    missing = [group for group in ("model", "optimizer") if group not in config]
    if missing:
        raise DataError(f"{path}: a run's configuration has {missing[0]}")
    return config


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
    text = OmegaConf.to_yaml(shown, resolve=True)
    replace_file(folder / "config.yaml", lambda file: file.write(text.encode()))


def resumed_config(config: DictConfig, overrides: list[str]) -> DictConfig:
    """The interrupted run's own configuration, with the overrides given now."""
    saved = saved_config(Path(config.resume))
    for override in overrides:
        key, _, _ = override.partition("=")
        same = key == "trainer" and config.trainer._target_ == saved.trainer._target_
        if key == "resume" or same:
            continue
        if key not in ("device", "test_tasks") and not key.startswith("trainer."):
            raise SettingError(
                "resume",
                config.resume,
                f"a resumed run keeps its settings; device, test_tasks and trainer.* may change, "
                f"not {override}",
            )
        OmegaConf.update(saved, key, OmegaConf.select(config, key))
    return saved
