"""What a person gave: on the command line, and in the experiment that was asked for.

A composed configuration holds defaults beside what was given. Whether a setting is in vain is a
question about the latter alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from metalearn.errors import SettingError
from metalearn.near_names import nearest

__all__ = [
    "GivenSetting",
    "flat_settings",
    "given_settings",
    "is_grid",
    "plain_value",
    "refuse_unknown",
    "sweep_jobs",
]

_NOT_SETTINGS = ("defaults", "hydra")


@dataclass(frozen=True)
class GivenSetting:
    """A setting that was given."""

    name: str
    """With dots: ``task`` for the choice of a group, ``task.way``."""
    value: Any
    removed: bool = False
    """Whether it was taken away, ``~task.way``."""
    experiment: str | None = None
    """Where it was given by an experiment."""

    @property
    def group(self) -> str:
        """The first part of the name."""
        return self.name.partition(".")[0]

    def refusal(self, accepted: str) -> SettingError:
        """The error that says what would be accepted."""
        if self.experiment is not None:
            accepted += f" (experiment={self.experiment} sets it)"
        return SettingError(self.name, self.value, accepted)


def given_settings(hydra: Any) -> list[GivenSetting]:
    """What the overrides of a command line set, and what an experiment among them sets.

    Args:
        hydra: that node of a composed configuration, or `HydraConfig.get`.
    """
    overrides = _texts(hydra)
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    found = []
    for override in parser.parse_overrides(overrides):
        removed = override.is_delete()
        value = override.value()
        found.append(GivenSetting(override.key_or_group, value, removed))
        if override.key_or_group == "experiment" and not removed:
            for name in value if isinstance(value, list) else [value]:
                found += _of_experiment(str(name))
    return found


def is_grid(config: DictConfig) -> bool:
    """Whether a sweep is Hydra's own, of all combinations, so that its jobs are known before.

    Args:
        config: of a sweep, with its ``hydra`` node.
    """
    return str(config.hydra.sweeper._target_).startswith("hydra._internal.")


def sweep_jobs(config: DictConfig) -> list[DictConfig]:
    """The configurations of the jobs of a sweep.

    What another sweeper than Hydra's own will choose is not known: of it each value stands once
    beside the first ones of others, of an interval both ends.

    Args:
        config: of a sweep, with its ``hydra`` node.
    """
    loader = GlobalHydra.instance().config_loader()
    texts = [f"{k}={v}" for k, v in (config.hydra.sweeper.get("params") or {}).items()]
    texts += _texts(config.hydra)
    values: dict[str, list[str]] = {}
    for override in OverridesParser.create(config_loader=loader).parse_overrides(texts):
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [_as_text(key, override.get_value_element_as_str(), override.is_delete())]
        elif override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        elif is_grid(config):
            return []  # Hydra says what it does not take
        else:
            interval: Any = override.value()
            values[key] = [f"{key}={end}" for end in (interval.start, interval.end)]
    jobs = list(itertools.product(*values.values()) if is_grid(config) else _each_once(values))
    return [loader.load_sweep_config(config, list(job)) for job in jobs]


def _each_once(values: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    first = {key: several[0] for key, several in values.items()}
    yield list(first.values())
    for key, several in values.items():
        for text in several[1:]:
            yield list({**first, key: text}.values())


def plain_value(value: Any, *, resolve: bool = False) -> Any:
    """A value of a configuration without its wrapper."""
    return OmegaConf.to_container(value, resolve=resolve) if OmegaConf.is_config(value) else value


def refuse_unknown(config: DictConfig, name: str, given: Sequence[GivenSetting]) -> None:
    """Refuse settings outside groups that the script's own YAML does not have, and lost ones.

    Args:
        config: composed.
        name: of the YAML.
        given: what a person gave.

    Raises:
        SettingError: the first such setting.
    """
    own = _load(name)
    groups = {group for group, _ in _defaults(own)}
    values = {k: v for k, v in _entries(own).items() if k not in _NOT_SETTINGS}
    for setting in given:
        if setting.removed and setting.name in flat_settings(values):
            raise setting.refusal("this setting has to be given; ~ takes away a group alone")
    for key in config:
        if str(key) not in (*groups, *_NOT_SETTINGS):
            _refuse_unknown(config, str(key), values, "")


def _refuse_unknown(node: DictConfig, key: str, known: Mapping[str, Any], prefix: str) -> None:
    hidden = OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key)
    value = None if hidden else node[key]
    if key not in known:
        near = nearest(key, known)
        hint = f"did you mean {prefix}{near}?" if near else f"known: {', '.join(known)}"
        raise SettingError(prefix + key, plain_value(value), f"there is no such setting; {hint}")
    if not isinstance(known[key], dict):
        return
    if not isinstance(value, DictConfig):
        accepted = f"this holds settings: {', '.join(f'{prefix}{key}.{k}' for k in known[key])}"
        raise SettingError(prefix + key, plain_value(value), accepted)
    for part in value:
        _refuse_unknown(value, str(part), known[key], f"{prefix}{key}.")


def _texts(hydra: Any) -> list[str]:
    found = OmegaConf.to_container(hydra.overrides.task)  # unresolved: ${...} are texts of these
    return [str(text) for text in found] if isinstance(found, list) else []


def _as_text(key: str, value: str, removed: bool) -> str:
    return key if removed and not value else f"{key}={value}"


def _of_experiment(name: str) -> Iterator[GivenSetting]:
    """What an experiment and those that it builds on choose and set."""
    node = _load(f"experiment/{name}")
    for group, choice in _defaults(node):
        if group:
            yield GivenSetting(group, choice, experiment=name)
        elif choice != "_self_":
            yield from _of_experiment(str(choice))
    values = {k: v for k, v in _entries(node).items() if k not in _NOT_SETTINGS}
    for setting, value in flat_settings(values).items():
        yield GivenSetting(setting, value, experiment=name)


def _defaults(node: DictConfig) -> Iterator[tuple[str, Any]]:
    """Groups and choices of a YAML's list of defaults; the group of a bare name is empty."""
    for entry in node.get("defaults") or ():
        if isinstance(entry, str):
            yield "", entry
        else:
            for group, choice in entry.items():
                yield str(group).removeprefix("override ").lstrip("/").partition("@")[0], choice


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted names, and the mappings that hold some of them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found[prefix + key] = value
        if isinstance(value, dict):
            found |= flat_settings(value, f"{prefix}{key}.")
    return found


def _entries(node: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(node)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _load(name: str) -> DictConfig:
    """A YAML as it stands, from wherever Hydra would take it."""
    path = f"{name.removesuffix('.yaml')}.yaml"
    for source in GlobalHydra.instance().config_loader().get_sources():
        if source.available() and source.is_config(path):
            node = source.load_config(path).config
            if isinstance(node, DictConfig):
                return node
    return DictConfig({})
