"""What a node of a configuration builds: held against its signature, and made.

Every refusal names the setting by its group.
"""

from __future__ import annotations

import inspect
from typing import Any, NoReturn

import torch
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from metalearn.cli.given_settings import plain_value
from metalearn.cli.own_modules import found_object, why_not
from metalearn.data import ClassificationData, RegressionData
from metalearn.errors import DataError, SettingError
from metalearn.signatures import accepted_settings, check_settings
from metalearn.trainers import MAML, HyperModule, Learner, ParameterGroups, Trainer
from metalearn.types import TaskDistribution

__all__ = [
    "AROUND",
    "OF_EXAMPLES",
    "PARTIAL",
    "SOURCES",
    "accepted_of",
    "check_node",
    "group_node",
    "kept_of",
    "made",
    "made_optimizer",
    "placed",
    "target_of",
]

_FULL_NAMES = ("maml.", "task.", "learner.", "model", "module", "optimizer")
SOURCES = {
    "task": "tasks",
    "data": "data",
    "ood": "ood",
    "maml": "maml",
    "learner": "learner",
    "hyper": "hyper",
}
"""Groups that become an argument of the trainer, where it has such an argument."""
_GROUP_OF = {argument: group for group, argument in SOURCES.items()} | {
    "kind": "task",
    "member_weights": "data.member_weights",
}
"""By what a trainer refuses of its arguments, the group in which it is chosen."""
_HANDED = (
    "model", "factory", "optimizer", "tracker", "folder", "device", "deterministic", "ranks",
    "member_weights",
)  # fmt: skip
_SUPPLIED = {
    "model": {"input_shape", "outputs", "vocabulary"},
    "learner": {"module", "maml", "kind"},
    "hyper": {"setup"},
    "optimizer": {"params"},
    "task": {"data"},
    "trainer": {*SOURCES.values(), *_HANDED, "metrics"},
}
"""Arguments that are made from other groups, or are functions: no settings."""
_CLASSES: dict[str, tuple[type, ...]] = {
    "data": (ClassificationData, RegressionData),
    "ood": (ClassificationData,),
    "learner": (Learner,),
    "hyper": (HyperModule,),
    "maml": (MAML,),
    "model": (nn.Module,),
    "optimizer": (torch.optim.Optimizer,),
    "trainer": (Trainer,),
}
"""What the target of a group gives, where that is a class and no protocol."""
_MADE = {**_CLASSES, "task": (TaskDistribution,)}
PARTIAL = ("learner", "hyper", "optimizer")
"""Groups that become what makes something, of arguments that the trainer has."""
_KEYWORDS = ("_target_", "_partial_")
AROUND = ("frozen_features", "lora")
"""Settings of ``model`` that are no arguments of the network, but say what becomes of it."""
OF_EXAMPLES = ("member_weights", "imbalance", "wrong_labels")
"""Settings of ``data`` that are no arguments of it: what becomes of its training examples."""
_BESIDE = {"optimizer": ("groups",), "model": AROUND, "data": OF_EXAMPLES, "ood": OF_EXAMPLES}
"""Settings of a group that are none of its target's."""


def target_of(node: DictConfig, group: str) -> Any:
    """What a node builds."""
    place = node.get("_target_")
    try:
        target = found_object(place)
    except (ImportError, AttributeError, ValueError, TypeError, HydraException) as error:
        accepted = f"no such class can be imported{why_not(place, error)}"
        raise SettingError(f"{group}._target_", place, accepted) from error
    if not callable(target):
        raise SettingError(f"{group}._target_", place, "a class or a function is needed")
    return target


def kept_of(group: str) -> tuple[str, ...]:
    """What a node of a group has whatever class it names: no arguments of that class."""
    return (*_KEYWORDS, *_BESIDE.get(group, ()))


def group_node(config: DictConfig, group: str) -> DictConfig:
    """The node of a group that has to be there."""
    node = config.get(group)
    if not isinstance(node, DictConfig) or "_target_" not in node:
        choices = f"a choice of this group is needed, {group}=..., which --help lists"
        raise SettingError(group, plain_value(node), choices)
    return node


def accepted_of(node: DictConfig, group: str) -> dict[str, Any]:
    """What a node's target accepts, without what other groups supply."""
    target = target_of(node, group)
    try:
        accepted = accepted_settings(target)
    except (ValueError, TypeError, NameError) as error:
        reason = "something with a signature that can be read is needed"
        raise SettingError(f"{group}._target_", node["_target_"], reason) from error
    return {k: v for k, v in accepted.items() if k not in _SUPPLIED.get(group, ())}


def check_node(node: DictConfig, group: str) -> None:
    """Hold a configuration node against the signature of its ``_target_``."""
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        name = f"{group}.{missing[0].removeprefix(f'{group}.')}"
        raise SettingError(name, None, "this setting has to be given")
    values = {str(key): plain_value(node[key], resolve=True) for key in node}
    settings = {k: v for k, v in values.items() if k not in kept_of(group)}
    for name in settings:
        if name.startswith("_"):
            raise SettingError(f"{group}.{name}", settings[name], "there is no such setting")
    accepted_of(node, group)
    target = target_of(node, group)
    if inspect.isclass(target) and not issubclass(target, _CLASSES.get(group, object)):
        _refuse_target(node, group)
    check_settings(target, settings, f"{group}.", without=_SUPPLIED.get(group, ()))
    partial = group in PARTIAL
    if bool(values.get("_partial_")) != partial:
        accepted = f"{str(partial).lower()} is needed"
        raise SettingError(f"{group}._partial_", values.get("_partial_"), accepted)
    if group == "optimizer":
        made_optimizer(node)


def made(node: DictConfig, group: str, **objects: Any) -> Any:
    """Instantiate a node; what its constructor refuses is named by its place."""
    try:
        # Objects go in by hand: Hydra would turn dataclasses into configurations.
        target = instantiate(_own(node, group), _partial_=True, _convert_="all")
        if node.get("_partial_"):
            return target
        found = target(**objects)
    except SettingError as error:
        raise placed(error, group) from error
    except InstantiationException as error:
        if isinstance(error.__cause__, SettingError):
            raise placed(error.__cause__, group) from error
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from error
        raise
    except (TypeError, ValueError, OverflowError) as error:
        if str(node["_target_"]).startswith("metalearn."):
            raise
        accepted = f"this cannot be made with these settings: {error}"
        raise SettingError(f"{group}._target_", node["_target_"], accepted) from error
    if not isinstance(found, _MADE[group]):
        _refuse_target(node, group)
    return found


def _own(node: DictConfig, group: str) -> Any:
    """What of a node is for its target."""
    if group not in _BESIDE:
        return node
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {key: value for key, value in values.items() if key not in _BESIDE[group]}


def made_optimizer(node: DictConfig) -> Any:
    """What makes the optimiser of parameters, with groups of them where there are some."""
    groups = plain_value(node.get("groups"), resolve=True)
    make = made(node, "optimizer")
    try:
        return make if groups is None else ParameterGroups(make, groups)
    except SettingError as error:
        raise placed(error, "optimizer") from error


def _refuse_target(node: DictConfig, group: str) -> NoReturn:
    names = " or ".join(kind.__name__ for kind in _MADE[group])
    raise SettingError(f"{group}._target_", node["_target_"], f"{names} is needed")


def placed(error: SettingError, group: str) -> SettingError:
    """The error under its full name, where it does not have one already."""
    if error.setting.startswith(_FULL_NAMES):
        return error
    first, dot, rest = error.setting.partition(".")
    chosen = _GROUP_OF.get(first) if group == "trainer" else None
    around = error.setting.rpartition(".")[0]
    hint = f"did you mean {around}."  # of a nested name
    accepted = error.accepted
    if around:
        accepted = accepted.replace(hint, f"did you mean {group}.{around}.")
    name = f"{chosen}{dot}{rest}" if chosen else f"{group}.{error.setting}"
    return SettingError(name, error.value, accepted)
