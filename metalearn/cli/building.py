"""From a configuration to objects, every setting checked on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from metalearn.data import resized
from metalearn.errors import DataError, SettingError, check_whole
from metalearn.models import Ensemble
from metalearn.signatures import accepted_settings, check_settings
from metalearn.trainers import EnsembleTrainer, MetaTrainer, PerSampleTrainer

__all__ = ["AnyTrainer", "build", "groups_of"]

AnyTrainer = MetaTrainer | EnsembleTrainer | PerSampleTrainer

_FULL_NAMES = ("maml.", "model", "module", "optimizer")
_SOURCES = {"task": "tasks", "data": "data", "ood": "ood", "maml": "maml"}
"""Groups that become an argument of the trainer, where it has such an argument."""


def groups_of(config: DictConfig) -> tuple[str, ...]:
    """The groups that a configuration's trainer is built from, itself last."""
    accepted = accepted_settings(_target(config.trainer, "trainer"))
    sources = [g for g, argument in _SOURCES.items() if argument in accepted and config.get(g)]
    return (*sources, "model", "optimizer", "trainer")


def build(config: DictConfig, *, folder: Path | None) -> AnyTrainer:
    """The trainer of a configuration, every setting checked before anything is loaded."""
    device = _device(config.device)
    check_whole("seed", config.seed, 0)
    if config.seed >= 2**63:
        raise SettingError("seed", config.seed, "a whole number below 2^63 is needed")
    check_whole("test_tasks", config.test_tasks, 0)
    deterministic = config.get("deterministic", False)  # runs of before have no such setting
    if not isinstance(deterministic, bool):
        raise SettingError("deterministic", deterministic, "true or false is needed")
    groups = groups_of(config)
    for group in groups:
        _check(config[group], group)
    optimizer = _make(config.optimizer, "optimizer")
    objects = {_SOURCES[g]: _make(config[g], g) for g in groups if g in _SOURCES}
    source = objects.get("tasks") or objects["data"]
    if "ood" in objects:
        channels, *size = source.input_shape
        objects["ood"] = resized(objects["ood"], image_size=size[0], channels=channels)
    if "seeds" in accepted_settings(_target(config.trainer, "trainer")):
        check_whole("trainer.members", config.trainer.members, 1)
        objects["seeds"] = _network_seeds(config)
    trainer: AnyTrainer = _make(
        config.trainer,
        "trainer",
        model=_model(config, source),
        optimizer=optimizer,
        folder=folder,
        device=device,
        deterministic=deterministic,
        **objects,
    )
    return trainer


def _model(config: DictConfig, source: Any) -> nn.Module:
    """The network, or as many of them as the trainer trains, each with a seed of its own."""
    shape = {"input_shape": list(source.input_shape), "outputs": source.outputs}
    members = config.trainer.get("members")
    if members is None:
        model: nn.Module = _make(config.model, "model", **shape)
        return model
    check_whole("trainer.members", members, 1)
    seeded = "seed" in accepted_settings(_target(config.model, "model"))

    def make(seed: int) -> nn.Module:
        own = shape | {"seed": seed} if seeded else shape
        network: nn.Module = _make(config.model, "model", **own)
        return network

    return Ensemble.from_factory(make, _network_seeds(config))


def _network_seeds(config: DictConfig) -> list[int]:
    """Of the weights of each network, and of the order in which it sees the data."""
    given, members = config.trainer.get("seeds"), config.trainer.members
    count = getattr(_target(config.trainer, "trainer"), "networks", None) or members
    if given is None:
        return list(range(config.seed, config.seed + count))
    if len(given) != count:
        raise SettingError(
            "trainer.seeds", list(given), f"{count} are needed, one for each network"
        )
    for seed in given:
        check_whole("trainer.seeds", seed, 0)
    return list(given)


def _target(node: DictConfig, group: str) -> Any:
    """What a node builds."""
    try:
        return get_object(node["_target_"])
    except (ImportError, AttributeError, ValueError, TypeError, HydraException) as error:
        place = node.get("_target_")
        raise SettingError(f"{group}._target_", place, "no such class can be imported") from error


def _check(node: DictConfig, group: str) -> None:
    """Hold a configuration node against the signature of its ``_target_``."""
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        raise SettingError(f"{group}.{missing[0]}", None, "this setting has to be given")
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    plain = {str(k): v for k, v in values.items() if not str(k).startswith("_")}
    check_settings(_target(node, group), plain, f"{group}.")


def _make(node: DictConfig, group: str, **objects: Any) -> Any:
    """Instantiate a node; what its constructor refuses is named by its place."""
    try:
        # Objects go in by hand: Hydra would turn dataclasses into configurations.
        target = instantiate(node, _partial_=True, _convert_="all")
        return target if node.get("_partial_") else target(**objects)
    except SettingError as error:
        raise _placed(error, group) from error
    except InstantiationException as error:
        if isinstance(error.__cause__, SettingError):
            raise _placed(error.__cause__, group) from error
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from error
        raise


def _placed(error: SettingError, group: str) -> SettingError:
    """The error under its full name, where it does not have one already."""
    if error.setting.startswith(_FULL_NAMES):
        return error
    return SettingError(f"{group}.{error.setting}", error.value, error.accepted)


def _device(name: str) -> torch.device:
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if accelerator is None else accelerator
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        raise SettingError(
            "device", name, "auto, cpu or a device that torch finds here is needed"
        ) from error
    return device
