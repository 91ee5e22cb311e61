"""A run's folder: its name, its lock, its configuration."""

from __future__ import annotations

import io
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metalearn.cli.building import groups_of
from metalearn.cli.targets import check_targets
from metalearn.errors import DataError, SettingError
from metalearn.files import read_regular, replace_file

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
_WRITTEN = (_LOCK, _LOG, "metrics.jsonl", "tensorboard")
"""What is written to where it is; all else is put in its place whole."""
_LARGEST = 2**18  # bytes of a configuration: a hundred times what they have
_DEEPEST = 32  # levels of a configuration


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
    """The folder ``name`` if a run stands in it; SettingError otherwise.

    Raises:
        DataError: a run that would write into a file elsewhere, through a link in its folder.
    """
    folder = Path(name)
    if not (folder / "config.yaml").is_file():
        raise SettingError(setting, name, "the folder of a run, with its config.yaml, is needed")
    for path in (folder / written for written in _WRITTEN):
        if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):
            raise DataError(f"{path}: a run keeps this itself; it is a link or no file, remove it")
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
    missing = [group for group in ("model", "optimizer") if group not in config]
    if missing:
        raise DataError(f"{path}: a run's configuration has {missing[0]}")
    return config


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
    text = OmegaConf.to_yaml(shown, resolve=True)
    replace_file(folder / "config.yaml", lambda file: file.write(text.encode()))


def resumed_config(config: DictConfig, overrides: list[str]) -> DictConfig:
    """The interrupted run's own configuration, with the overrides given now."""
    typed = [override.partition("=")[0] for override in overrides]
    saved = saved_config(Path(config.resume), trust=config.trust, typed=typed)
    for override in overrides:
        key, _, _ = override.partition("=")
        same = key == "trainer" and config.trainer._target_ == saved.trainer._target_
        if key in ("resume", "trust") or same:
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
