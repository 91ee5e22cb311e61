"""From a configuration to objects, every setting checked on the way."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import torch
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from metalearn.cli.devices import device_of
from metalearn.cli.given_settings import plain_value
from metalearn.core.memory import check_memory
from metalearn.data import ClassificationData, RegressionData, resized
from metalearn.errors import DataError, SettingError, check_whole
from metalearn.models import Ensemble
from metalearn.signatures import accepted_settings, check_settings
from metalearn.trainers import MAML, Learner, Trainer
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.supervised.losses import chosen_loss
from metalearn.types import TaskDistribution

__all__ = ["GROUPS", "build", "check_settings_of", "groups_of", "target_of"]

GROUPS = ("task", "data", "ood", "learner", "maml", "model", "optimizer", "trainer")

_FULL_NAMES = ("maml.", "task.", "model", "module", "optimizer")
_SOURCES = {"task": "tasks", "data": "data", "ood": "ood", "maml": "maml", "learner": "learner"}
"""Groups that become an argument of the trainer, where it has such an argument."""
_GROUP_OF = {argument: group for group, argument in _SOURCES.items()} | {"kind": "task"}
"""By what a trainer refuses of its arguments, the group in which it is chosen."""
_REQUIRED = ("task", "data")
_HANDED = ("model", "optimizer", "tracker", "folder", "device", "deterministic")
_SUPPLIED = {
    "model": {"input_shape", "outputs"},
    "learner": {"module", "maml", "kind"},
    "optimizer": {"params"},
    "task": {"data"},
    "trainer": {*_SOURCES.values(), *_HANDED, "metrics"},
}
"""Arguments that are made from other groups, or are functions: no settings."""
_CLASSES: dict[str, tuple[type, ...]] = {
    "data": (ClassificationData, RegressionData),
    "ood": (ClassificationData,),
    "learner": (Learner,),
    "maml": (MAML,),
    "model": (nn.Module,),
    "optimizer": (torch.optim.Optimizer,),
    "trainer": (Trainer,),
}
"""What the target of a group gives, where that is a class and no protocol."""
_MADE = {**_CLASSES, "task": (TaskDistribution,)}
_KEYWORDS = ("_target_", "_partial_")
_LARGEST = 2**63 - 1


def groups_of(config: DictConfig) -> tuple[str, ...]:
    """The groups that a configuration's trainer is built from, itself last."""
    accepted = accepted_settings(target_of(_group(config, "trainer"), "trainer"))
    sources = [g for g, argument in _SOURCES.items() if argument in accepted and config.get(g)]
    looping = "learner" not in sources or "maml" in accepted_settings(
        target_of(_group(config, "learner"), "learner")
    )
    if not looping and "maml" in sources:
        sources.remove("maml")
    return (*sources, "model", "optimizer", "trainer")


def check_settings_of(config: DictConfig) -> None:
    """Refuse a configuration that cannot work, as far as that shows before anything is loaded.

    Raises:
        SettingError: the first setting that cannot work.
    """
    device_of(config.device)
    for name in ("seed", "test_tasks"):
        check_whole(name, plain_value(config[name]), 0, _LARGEST)
    deterministic = config.get("deterministic", False)  # runs of before have no such setting
    if not isinstance(deterministic, bool):
        raise SettingError("deterministic", plain_value(deterministic), "true or false is needed")
    accepted = _accepted(_group(config, "trainer"), "trainer")
    arguments = accepted_settings(target_of(config.trainer, "trainer"))
    for group in _REQUIRED:
        if _SOURCES[group] in arguments:
            _group(config, group)
    for group in groups_of(config):
        _check(_group(config, group), group)
    _check_learner(config)
    loop = {
        f.name: config.trainer[f.name] for f in fields(LoopSettings) if f.name in config.trainer
    }
    try:
        LoopSettings(**{name: plain_value(value) for name, value in loop.items()})
    except SettingError as error:
        raise _placed(error, "trainer") from error
    if "members" in accepted and ("seeds" in accepted or config.trainer.get("members") is not None):
        check_whole("trainer.members", config.trainer.get("members"), 1)
        _network_seeds(config)


def build(config: DictConfig, *, folder: Path | None) -> Trainer:
    """The trainer of a configuration, every setting checked before anything is loaded."""
    check_settings_of(config)
    device = device_of(config.device)
    groups = groups_of(config)
    optimizer = _make(config.optimizer, "optimizer")
    objects = {_SOURCES[g]: _make(config[g], g) for g in groups if g in _SOURCES and g != "ood"}
    source = objects.get("tasks") or objects["data"]
    if "ood" in groups:
        objects["ood"] = _second_data(config.ood, source)
    if "seeds" in _accepted(config.trainer, "trainer"):
        objects["seeds"] = _network_seeds(config)
    trainer: Trainer = _make(
        config.trainer,
        "trainer",
        model=_model(config, source),
        optimizer=optimizer,
        folder=folder,
        device=device,
        deterministic=config.get("deterministic", False),
        **objects,
    )
    return trainer


def _check_learner(config: DictConfig) -> None:
    """Refuse settings of a learner that cannot work, tried on the smallest of networks."""
    groups = groups_of(config)
    inner = {"maml": _make(config.maml, "maml")} if "maml" in groups else {}
    if "learner" not in groups:
        return
    learner = config.learner
    if inner and learner.get("first_order") and inner["maml"].method not in ("auto", "first_order"):
        accepted = "auto is needed with a learner of first order"
        raise SettingError("maml.method", inner["maml"].method, accepted)
    try:
        _make(learner, "learner")(nn.Linear(1, 1), kind="classification", **inner)
    except SettingError as error:
        if error.setting in learner:  # what is said of such a network is of no concern
            raise _placed(error, "learner") from error


def _second_data(node: DictConfig, first: Any) -> ClassificationData:
    """Data that ought to be found uncertain, resized to the first."""
    if first.kind != "classification":
        accepted = "null is needed: uncertainties of classes alone are compared with a second set"
        raise SettingError("ood", node["_target_"], accepted)
    channels, *size = first.input_shape
    return resized(_make(node, "ood"), image_size=size[0], channels=channels)


def _outputs(config: DictConfig, source: Any) -> int:
    """How many outputs of a sample the network needs."""
    if "loss" in _accepted(config.trainer, "trainer"):
        try:
            return chosen_loss(plain_value(config.trainer.get("loss")), source).widths[0]
        except SettingError as error:
            raise _placed(error, "trainer") from error
    return int((config.get("learner") or {}).get("features") or source.outputs)


def _model(config: DictConfig, source: Any) -> nn.Module:
    """The network, or as many of them as the trainer trains, each with a seed of its own."""
    outputs = _outputs(config, source)
    shape = {"input_shape": list(source.input_shape), "outputs": outputs}
    members = config.trainer.get("members")
    if members is None:
        model: nn.Module = _make(config.model, "model", **shape)
        return model
    seeded = "seed" in _accepted(config.model, "model")

    def make(seed: int) -> nn.Module:
        own = shape | {"seed": seed} if seeded else shape
        network: nn.Module = _make(config.model, "model", **own)
        return network

    seeds = _network_seeds(config)
    size = sum(part.numel() * part.element_size() for part in make(seeds[0]).parameters())
    check_memory("trainer.members", members, 2 * size * len(seeds))  # with their gradients
    return Ensemble.from_factory(make, seeds)


def _network_seeds(config: DictConfig) -> Sequence[int]:
    """Of the weights of each network, and of the order in which it sees the data."""
    given, members = plain_value(config.trainer.get("seeds")), config.trainer.members
    count = getattr(target_of(config.trainer, "trainer"), "networks", None) or members
    if given is None:
        return range(config.seed, config.seed + count)
    if len(given) != count:
        raise SettingError("trainer.seeds", given, f"{count} are needed, one for each network")
    for seed in given:
        check_whole("trainer.seeds", seed, 0, _LARGEST)
    return [int(seed) for seed in given]


def target_of(node: DictConfig, group: str) -> Any:
    """What a node builds."""
    place = node.get("_target_")
    logger = logging.getLogger(get_object.__module__)
    before, logger.disabled = logger.disabled, True  # it would say once more what cannot be found
    try:
        target = get_object(place)
    except (ImportError, AttributeError, ValueError, TypeError, HydraException) as error:
        raise SettingError(f"{group}._target_", place, "no such class can be imported") from error
    finally:
        logger.disabled = before
    if not callable(target):
        raise SettingError(f"{group}._target_", place, "a class or a function is needed")
    return target


def _group(config: DictConfig, group: str) -> DictConfig:
    """The node of a group that has to be there."""
    node = config.get(group)
    if not isinstance(node, DictConfig) or "_target_" not in node:
        choices = f"a choice of this group is needed, {group}=..., which --help lists"
        raise SettingError(group, plain_value(node), choices)
    return node


def _accepted(node: DictConfig, group: str) -> dict[str, Any]:
    """What a node's target accepts, without what other groups supply."""
    target = target_of(node, group)
    try:
        accepted = accepted_settings(target)
    except (ValueError, TypeError, NameError) as error:
        reason = "something with a signature that can be read is needed"
        raise SettingError(f"{group}._target_", node["_target_"], reason) from error
    return {k: v for k, v in accepted.items() if k not in _SUPPLIED.get(group, ())}


def _check(node: DictConfig, group: str) -> None:
    """Hold a configuration node against the signature of its ``_target_``."""
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        name = f"{group}.{missing[0].removeprefix(f'{group}.')}"
        raise SettingError(name, None, "this setting has to be given")
    values = {str(key): plain_value(node[key], resolve=True) for key in node}
    settings = {k: v for k, v in values.items() if k not in _KEYWORDS}
    for name in settings:
        if name.startswith("_"):
            raise SettingError(f"{group}.{name}", settings[name], "there is no such setting")
    _accepted(node, group)
    target = target_of(node, group)
    if inspect.isclass(target) and not issubclass(target, _CLASSES.get(group, object)):
        _refuse_target(node, group)
    check_settings(target, settings, f"{group}.", without=_SUPPLIED.get(group, ()))
    partial = group in ("learner", "optimizer")
    if bool(values.get("_partial_")) != partial:
        accepted = f"{str(partial).lower()} is needed"
        raise SettingError(f"{group}._partial_", values.get("_partial_"), accepted)


def _make(node: DictConfig, group: str, **objects: Any) -> Any:
    """Instantiate a node; what its constructor refuses is named by its place."""
    try:
        # Objects go in by hand: Hydra would turn dataclasses into configurations.
        target = instantiate(node, _partial_=True, _convert_="all")
        if node.get("_partial_"):
            return target
        made = target(**objects)
    except SettingError as error:
        raise _placed(error, group) from error
    except InstantiationException as error:
        if isinstance(error.__cause__, SettingError):
            raise _placed(error.__cause__, group) from error
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from error
        raise
    except (TypeError, ValueError, OverflowError) as error:
        if str(node["_target_"]).startswith("metalearn."):
            raise
        accepted = f"this cannot be made with these settings: {error}"
        raise SettingError(f"{group}._target_", node["_target_"], accepted) from error
    if not isinstance(made, _MADE[group]):
        _refuse_target(node, group)
    return made


def _refuse_target(node: DictConfig, group: str) -> NoReturn:
    names = " or ".join(kind.__name__ for kind in _MADE[group])
    raise SettingError(f"{group}._target_", node["_target_"], f"{names} is needed")


def _placed(error: SettingError, group: str) -> SettingError:
    """The error under its full name, where it does not have one already."""
    if error.setting.startswith(_FULL_NAMES):
        return error
    chosen = _GROUP_OF.get(error.setting) if group == "trainer" else None
    return SettingError(chosen or f"{group}.{error.setting}", error.value, error.accepted)
