"""From a configuration to objects, every setting checked on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from metalearn.errors import DataError, SettingError, check_whole
from metalearn.signatures import check_settings
from metalearn.trainers import MetaTrainer
from metalearn.types import TaskDistribution

__all__ = ["GROUPS", "build"]

GROUPS = ("task", "model", "maml", "optimizer", "trainer")
_FULL_NAMES = ("maml.", "model", "module", "optimizer")


def build(config: DictConfig, *, folder: Path | None) -> tuple[TaskDistribution, MetaTrainer]:
    """Tasks and trainer of a configuration, every setting checked before anything is loaded."""
    device = _device(config.device)
    check_whole("seed", config.seed, 0)
    if config.seed >= 2**63:
        raise SettingError("seed", config.seed, "a whole number below 2^63 is needed")
    check_whole("test_tasks", config.test_tasks, 0)
    for group in GROUPS:
        _check(config[group], group)
    maml = _make(config.maml, "maml")
    optimizer = _make(config.optimizer, "optimizer")
    tasks: TaskDistribution = _make(config.task, "task")
    model = _make(config.model, "model", input_shape=list(tasks.input_shape), outputs=tasks.outputs)
    trainer = _make(
        config.trainer,
        "trainer",
        model=model,
        tasks=tasks,
        maml=maml,
        optimizer=optimizer,
        folder=folder,
        device=device,
    )
    return tasks, trainer


def _check(node: DictConfig, group: str) -> None:
    """Hold a configuration node against the signature of its ``_target_``."""
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        raise SettingError(f"{group}.{missing[0]}", None, "this setting has to be given")
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    plain = {str(k): v for k, v in values.items() if not str(k).startswith("_")}
    try:
        target = get_object(node["_target_"])
    except (ImportError, AttributeError, ValueError, TypeError, HydraException) as error:
        place = node.get("_target_")
        raise SettingError(f"{group}._target_", place, "no such class can be imported") from error
    check_settings(target, plain, f"{group}.")


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
