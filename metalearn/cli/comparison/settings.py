"""In which settings runs differ, by the names that a person types.

Axes: none.

A saved configuration names what was built; a person types the choice of a group, and what is not
as that choice has it. So runs of ``learner=maml`` and ``learner=protonet`` differ in ``learner``
alone, whatever else each choice brings with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from metalearn.cli.config_files import config_folder

__all__ = [
    "ABSENT",
    "as_typed",
    "differing_settings",
    "key_of",
    "printable",
    "seeds_of",
    "typed_settings",
]

ABSENT = type("Absent", (), {"__repr__": lambda self: "absent"})()
"""In place of the value of a setting that a run does not have."""

_SEEDS = ("seed", "seeds", "eval_seed")
_NO_SETTINGS = ("resume", "trust", "version", "shapes", "device", "tracker", "trainer.progress")
"""What changes nothing of what is learnt, but by rounding."""
_TARGET = "_target_"
_LONGEST = 80  # characters of a value that are shown


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each run, the settings in which some of the runs differ; `ABSENT` where it has none.

    Seeds are none of them, wherever they stand. A setting is compared between runs that have it,
    and with runs of the same choice that do not, as those of earlier versions.

    Args:
        configs: as they were saved.
    """
    configs = [_with_groups(config) for config in configs]
    stops = {name for config in configs for name, _ in _leaves(config, set())}
    flats = [dict(_leaves(config, stops)) for config in configs]
    groups = list(dict.fromkeys(g for flat in flats for g in _groups_of(flat)))
    choices = [{group: _choice(group, flat) for group in groups} for flat in flats]
    found: list[dict[str, Any]] = [{} for _ in flats]
    for group in groups:
        names = [choice[group] for choice in choices]
        several = len({key_of(name) for name in names if name is not ABSENT}) > 1
        if several or (ABSENT in names and len(_choices(group)) > 1):
            _add(found, group, names)
    for name in dict.fromkeys(name for flat in flats for name in flat):
        group = name.partition(".")[0]
        if group in groups:
            values = _within_group(name, flats, choices)
        else:
            values = [flat.get(name, ABSENT) for flat in flats]
        if values is not None and _differ(values, [choice.get(group) for choice in choices]):
            _add(found, name, values)
    return found


def seeds_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """All seeds of a configuration, by their names."""
    return {n: v for n, v in _all_leaves(config) if n.rpartition(".")[2] in _SEEDS}


def as_typed(value: Any) -> str:
    """A setting's value in one line, as it would be typed; cut where it is long."""
    if value is ABSENT:
        return ""
    text = printable(_typed(value))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def printable(text: str) -> str:
    """With a mark in place of line breaks, and of what would command a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def typed_settings(words: Sequence[str]) -> dict[str, str]:
    """Settings but for seeds, by their names, of a command line's ``name=value``."""
    pairs = (word.lstrip("+").partition("=") for word in words if "=" in word)
    return {n: value for n, _, value in pairs if n.rpartition(".")[2] not in _SEEDS}


def key_of(value: Any) -> str:
    """The same text for the same values, however they are written."""
    return repr(value) if value is ABSENT else json.dumps(_plain(value), sort_keys=True)


def _typed(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_typed(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_typed, value)) + "]"
    return f"{value}"


def _with_groups(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without groups that are null, with what is the default now of settings that it lacks.

    Runs on tasks that name no learner are of MAML.
    """
    lacking = {name: value for name, value in _top_level().items() if name not in config}
    whole = {**config, **lacking}
    own = {k: v for k, v in whole.items() if v is not None or not _choices(k)}
    return own if own.get("task") is None else {"learner": _written("learner", "maml"), **own}


def _leaves(node: Mapping[str, Any], stops: set[str], prefix: str = "") -> Iterator[Any]:
    """Settings with dotted names; a mapping is a value where another run has no mapping."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        if str(key) in _SEEDS or name in _NO_SETTINGS or name.partition(".")[0] in _NO_SETTINGS:
            continue
        if isinstance(value, dict) and value and name not in stops:
            yield from _leaves(value, stops, f"{name}.")
        else:
            yield name, _without_seeds(value)


def _all_leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _all_leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _without_seeds(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_seeds(v) for k, v in value.items() if k not in _SEEDS}
    return [_without_seeds(part) for part in value] if isinstance(value, list) else value


def _groups_of(flat: Mapping[str, Any]) -> list[str]:
    return [name.partition(".")[0] for name in flat if name.endswith(f".{_TARGET}")]


def _choice(group: str, flat: Mapping[str, Any]) -> Any:
    """The choice that a run's group comes from; the name of what it builds where there is none."""
    target = flat.get(f"{group}.{_TARGET}", ABSENT)
    own = {name for name in flat if name.startswith(f"{group}.")}
    best, likeness = target, None
    for choice in _choices(group):
        values = _defaults(group, choice, flat)
        if values.get(f"{group}.{_TARGET}") != target:
            continue
        alike = sum(key_of(flat.get(name)) == key_of(value) for name, value in values.items())
        here = (-len(own ^ set(values)), alike)
        if likeness is None or here > likeness:
            best, likeness = choice, here
    return best


def _within_group(
    name: str, flats: Sequence[Mapping[str, Any]], choices: Sequence[Mapping[str, Any]]
) -> list[Any] | None:
    """A setting of a group in each run; None where all is as the choices of the group have it."""
    group = name.partition(".")[0]
    if name == f"{group}.{_TARGET}":
        return None
    values, given = [], False
    for flat, choice in zip(flats, choices):
        known = isinstance(choice[group], str) and choice[group] in _choices(group)
        default = _defaults(group, choice[group], flat).get(name, ABSENT) if known else ABSENT
        value = flat.get(name, default)
        given |= key_of(value) != key_of(default)
        values.append(value)
    several = len({key_of(choice[group]) for choice in choices}) > 1
    return values if given or not several else None


def _differ(values: Sequence[Any], choices: Sequence[Any]) -> bool:
    """Whether runs differ in a setting that they have, or lack under a choice that has it."""
    having = {key_of(choice) for value, choice in zip(values, choices) if value is not ABSENT}
    compared = {key_of(v) for v, choice in zip(values, choices) if key_of(choice) in having}
    return len(compared) > 1


def _add(found: Sequence[dict[str, Any]], name: str, values: Sequence[Any]) -> None:
    for settings, value in zip(found, values):
        settings[name] = value


@cache
def _top_level() -> dict[str, Any]:
    """The settings of a training that stand in no group."""
    written: Any = OmegaConf.to_container(OmegaConf.load(config_folder() / "train.yaml"))
    return {name: value for name, value in written.items() if name not in ("defaults", "hydra")}


@cache
def _choices(group: str) -> tuple[str, ...]:
    """Of a group by its name; none of what is no name of a folder, such as a path."""
    if not group.isidentifier():
        return ()
    return tuple(sorted(path.stem for path in (config_folder() / group).glob("*.yaml")))


def _defaults(group: str, choice: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """What a choice has, with the run's own values in place of references to other settings."""
    found = {}
    for name, value in _leaves({group: _written(group, choice)}, set(flat)):
        reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        found[name] = flat.get(reference[1], ABSENT) if reference else value
    return found


@cache
def _written(group: str, choice: str) -> dict[str, Any]:
    """A choice's YAML, upon those that it builds on."""
    path = config_folder() / group / f"{choice}.yaml"
    if not path.is_file():
        return {}
    own: Any = OmegaConf.to_container(OmegaConf.load(path))
    found: dict[str, Any] = {}
    for entry in own.pop("defaults", ()):
        if isinstance(entry, str) and entry != "_self_":
            found |= _written(group, entry)
        for name, source in entry.items() if isinstance(entry, dict) else ():
            if name.endswith("@_here_"):
                found |= _written(name.removesuffix("@_here_").strip("/"), source)
    found |= own
    return found


def _plain(value: Any) -> Any:
    """With whole numbers as such, however they were typed: 10.0 is 10."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
