"""Settings of ``attribute`` that cannot work, and those that a run has no use for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig

from metalearn.attribution.scored_network import METHODS, SELF_METHODS, ScoreSettings
from metalearn.cli.given_settings import GivenSetting, plain_value
from metalearn.cli.run_config import config_to_read
from metalearn.core.checks import check_number
from metalearn.core.memory import parse_bytes
from metalearn.errors import SettingError, check_whole
from metalearn.near_names import check_known

__all__ = ["check", "is_of_a_learner"]

_USERS = {
    "damping": ("influence", "kronecker", "trak", "self_influence"),
    "projection": ("trak",),
    "checkpoints": ("tracin", "tracin_self", "el2n", "grand"),
} | dict.fromkeys(("memory", "spill", "check"), ("exact",))
_OF_RUNS_ON_DATA = (
    "methods", "self_methods", "subsets", "leave_out", "leave_k_out", "damping", "projection",
    "checkpoints", "spill", "seed",
)  # fmt: skip
_SETTINGS = tuple(field.name for field in fields(ScoreSettings))


def check(config: DictConfig, given: Sequence[GivenSetting]) -> None:
    """Refuse settings that cannot work, or that the run has no use for.

    Raises:
        SettingError, DataError: the first of them, or a run that cannot be read.
    """
    saved = config_to_read(config)
    if config.split == "train":
        raise SettingError("split", "train", "validation or test is needed")
    if not is_of_a_learner(saved) and saved.get("init_from") is not None:
        accepted = "a run that began with weights of its own is needed, without init_from"
        raise SettingError("run", plain_value(config.run), accepted)
    _check_methods(config)
    _check_numbers(config)
    unused = _on_tasks() if is_of_a_learner(saved) else _on_data(config)
    for entry in given:
        if entry.name in unused:
            raise entry.refusal(unused[entry.name])


def is_of_a_learner(saved: Mapping[Any, Any]) -> bool:
    """Whether a run's configuration is that of a meta-learner."""
    return "task" in saved


def _on_tasks() -> dict[str, str]:
    """Settings that a meta-learner has no use for, and why."""
    reason = (
        "the run is that of a meta-learner, whose support examples and training tasks are scored, "
        "so nothing is needed here"
    )
    return dict.fromkeys(_OF_RUNS_ON_DATA, reason)


def _on_data(config: DictConfig) -> dict[str, str]:
    """Settings that nothing that is asked for has a use for, and why."""
    asked = {*config.methods, *config.self_methods}
    found = {
        name: f"one of {', '.join(users)} is needed for it"
        for name, users in _USERS.items()
        if not asked & set(users)
    }
    found["training_tasks"] = "the run of a meta-learner (trainer=meta) is needed for it"
    return found if config.subsets else found | {"leave_out": "subsets=64 is needed for it"}


def _check_methods(config: DictConfig) -> None:
    for setting, known in (("methods", METHODS), ("self_methods", SELF_METHODS)):
        names = plain_value(config[setting])
        if not isinstance(names, list):
            raise SettingError(setting, names, f"a list of {', '.join(known)} is needed")
        for name in names:
            check_known(setting, name, tuple(known))
    if not config.methods:
        raise SettingError("methods", [], f"at least one of {', '.join(METHODS)} is needed")


def _check_numbers(config: DictConfig) -> None:
    ScoreSettings(**{name: plain_value(config[name]) for name in _SETTINGS})
    if config.memory is not None:
        parse_bytes(config.memory)
    for name, least in (("subsets", 0), ("top", 1)):
        check_whole(name, plain_value(config[name]), least)
    if config.subsets == 1:
        raise SettingError("subsets", 1, "0, or at least 2, are needed for a correlation")
    shares = plain_value(config.leave_out)
    if not isinstance(shares, list) or not shares:
        raise SettingError("leave_out", shares, "a list of shares in (0, 1) is needed")
    for share in shares:
        check_number("leave_out", share, above=0, below=1)
    for name in ("spill", "progress"):
        value = plain_value(config[name])
        if not (isinstance(value, bool) or (name == "progress" and value is None)):
            raise SettingError(name, value, "true or false is needed")
    _check_list("targets", plain_value(config.targets), count_from=1)
    _check_list("training_tasks", plain_value(config.training_tasks), count_from=0)
    if config.members is not None:
        _check_list("members", plain_value(config.members))
    _check_list("leave_k_out", plain_value(config.leave_k_out), least=1, empty=True)


def _check_list(
    name: str, value: Any, *, least: int = 0, count_from: int | None = None, empty: bool = False
) -> None:
    """A list of different whole numbers; or one number, where ``count_from`` is its least."""
    if count_from is not None and not isinstance(value, list):
        check_whole(name, value, count_from)
        return
    if not isinstance(value, list) or not (value or empty):
        raise SettingError(name, value, "a list of whole numbers is needed")
    for number in value:
        check_whole(name, number, least)
    if len(set(value)) < len(value):
        raise SettingError(name, value, "each number once is needed")
