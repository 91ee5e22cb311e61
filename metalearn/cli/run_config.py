"""A run's configuration: written into its folder, read from there, and gone on with."""

from __future__ import annotations

import inspect
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from metalearn.cli.allowed_targets import check_targets
from metalearn.cli.building import groups_of
from metalearn.cli.config_version import CONFIG_VERSION, upgraded
from metalearn.cli.devices import device_of
from metalearn.cli.error_messages import KEPT_ON_RESUMING
from metalearn.cli.given_settings import GivenSetting, plain_value
from metalearn.cli.run_folders import existing_run
from metalearn.cli.targets import target_of
from metalearn.errors import DataError, SettingError
from metalearn.files import read_regular, replace_file
from metalearn.random_streams import check_split

__all__ = [
    "config_to_read",
    "parsed_config",
    "resumed_config",
    "saved_config",
    "used_part",
    "write_config",
]

_TRAINER = "trainer._target_"
_LARGEST = 2**18  # bytes of a configuration: a hundred times what they have
_DEEPEST = 32  # levels of a configuration
_KINDS = ("map", "seq", "str", "int", "float", "bool", "null")
_TAGS = (None, *(f"tag:yaml.org,2002:{kind}" for kind in _KINDS))
"""Of values that a configuration has; others, such as bytes and sets, no command could type."""


def saved_config(folder: Path, *, trust: bool = False, typed: Collection[str] = ()) -> DictConfig:
    """The configuration that a run was started with.

    Args:
        folder: the run's folder.
        trust: whether it may name anything that can be imported to be called; see
            `metalearn.cli.allowed_targets.check_targets`.
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
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: this file cannot be read as a run's configuration") from error
    return parsed_config(text, path, trust=trust, typed=typed)


def parsed_config(
    text: str, path: Path, *, trust: bool = False, typed: Collection[str] = ()
) -> DictConfig:
    """The same of its text, which was read from ``path``."""
    if not isinstance(trust, bool):
        raise SettingError("trust", trust, "true or false is needed")
    try:
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


def config_to_read(config: DictConfig, run: str | None = None) -> DictConfig:
    """The configuration of a run that a command reads, whose own settings of it are checked.

    Args:
        config: of the command.
        run: the folder; None is ``config.run``.

    Raises:
        SettingError, DataError: the first that cannot work, or a run that cannot be read.
    """
    folder = existing_run(config.run if run is None else run, "run")
    saved = saved_config(folder, trust=plain_value(config.trust))
    if config.checkpoint not in ("best", "last"):
        raise SettingError("checkpoint", plain_value(config.checkpoint), "best or last is needed")
    if "split" in config:
        check_split(plain_value(config.split))
    device_of(config.device)
    return saved


def _check_form(text: str) -> None:
    """Refuse YAML that is small on the disk and large, or without end, in memory.

    So are values of which no configuration is made, such as bytes.
    """
    if len(text) > _LARGEST:
        raise ValueError(f"more than {_LARGEST} characters")
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if getattr(event, "tag", None) not in _TAGS:
            raise ValueError(f"the tag {event.tag}")
        if depth > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} levels")


def used_part(config: DictConfig) -> DictConfig:
    """A copy of a configuration without the groups that its trainer has no use for."""
    used = groups_of(config)
    nodes = {str(name): node for name, node in config.items()}
    names = [n for n, node in nodes.items() if not isinstance(node, DictConfig) or n in used]
    return OmegaConf.masked_copy(config, names)


def write_config(folder: Path, config: DictConfig, shapes: Mapping[str, Any] | None = None) -> None:
    """Write the resolved configuration into the run's folder.

    Args:
        folder: of the run.
        config: that trains.
        shapes: of the tasks, where there are some.
    """
    shown = used_part(config)
    shown.resume = None  # where this process began is told by the provenance files
    shown.pop("trust", None)  # no file may ask to be trusted
    with open_dict(shown):
        shown.version = CONFIG_VERSION
        if shapes is not None:
            shown.shapes = shapes
    text = OmegaConf.to_yaml(shown, resolve=True)
    path = folder / "config.yaml"
    replace_file(path, lambda file: file.write(text.encode()), make_folder=False)


def resumed_config(config: DictConfig, given: Sequence[GivenSetting]) -> DictConfig:
    """The interrupted run's own configuration, with what is given now.

    Raises:
        SettingError: something is given that a resumed run cannot change.
    """
    folder = existing_run(config.resume, "resume")
    typed = [setting.name for setting in given]
    saved = saved_config(folder, trust=plain_value(config.trust), typed=typed)
    if any(setting.name == _TRAINER and not setting.removed for setting in given):
        saved.trainer._target_ = config.trainer._target_  # what the file names is not looked up

    def fits(setting: GivenSetting) -> bool:
        return _may_change(setting) or _is_as_saved(config, saved, setting)

    of_experiment = all(fits(setting) for setting in given if setting.experiment is not None)
    for setting in given:
        name = setting.name
        if name in ("resume", "trust") or (name == "experiment" and of_experiment):
            continue
        if name == "experiment" or not fits(setting):
            raise setting.refusal(f"{KEPT_ON_RESUMING} beside resume={config.resume}")
        if _may_change(setting):
            _check_kept(saved, setting, config)
            OmegaConf.update(saved, name, OmegaConf.select(config, name), merge=False)
    return saved


def _may_change(given: GivenSetting) -> bool:
    free = given.name in ("device", "test_tasks", "tracker") or given.name.startswith("trainer.")
    return free and not given.removed


def _is_as_saved(config: DictConfig, saved: DictConfig, given: GivenSetting) -> bool:
    """Whether what is given is what the run has: of a group, in all that the run knows of it."""
    if given.removed:
        return False
    # not a choice, that other settings come with; of an experiment's each is there by itself
    composed = isinstance(given.value, dict) and given.experiment is None
    if given.name == "trainer" and not composed:  # of which the rest may change
        return bool(config.trainer._target_ == saved.trainer._target_)
    found, had = (
        plain_value(OmegaConf.select(part, given.name), resolve=True) for part in (config, saved)
    )
    if isinstance(found, dict) and isinstance(had, dict) and not composed:
        return all(name in found and found[name] == value for name, value in had.items())
    return type(found) is type(had) and bool(found == had)


def _check_kept(saved: DictConfig, given: GivenSetting, config: DictConfig) -> None:
    """Refuse another value of a setting by which the run's module was made, or its best chosen."""
    target = target_of(saved.trainer, "trainer")
    parameters = inspect.signature(target).parameters
    reasons = {"makes_module": "its module was made so", "chooses_best": "its best was chosen so"}
    for kept, reason in reasons.items():
        if given.name not in {f"trainer.{name}" for name in getattr(target, kept, ())}:
            continue
        name = given.name.partition(".")[2]
        default = parameters[name].default if name in parameters else None
        had = OmegaConf.select(saved.trainer, name, default=default)  # of a run before: none
        had = plain_value(had)
        if plain_value(OmegaConf.select(config, given.name), resolve=True) != had:
            shown = "null" if had is None else had
            accepted = f"{shown} is needed, as resume={config.resume} has it: {reason}"
            raise given.refusal(accepted)
