"""What a run's ``config.yaml`` has to be, and the version that it is written in.

Version 1 has no number; it is that of runs before version 2, which added ``deterministic``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metalearn.errors import DataError
from metalearn.schema import (
    Kind,
    Misfit,
    anything,
    choice,
    flag,
    list_of,
    map_of,
    mapping,
    maybe,
    text,
    whole,
)

__all__ = ["CONFIG_VERSION", "upgraded"]

CONFIG_VERSION = 2

_BEFORE: dict[int, dict[str, Any]] = {1: {"deterministic": False}}
"""By version: settings that it did not have, and the values that say what was done then."""

_OF_ONE_NETWORK = ("MCDropoutTrainer", "BatchEnsembleTrainer", "SnapshotTrainer", "SWAGTrainer")


def _group(value: Any, where: str) -> None:
    map_of(text, anything)(value, where)
    mapping({"_target_": text}, {"_partial_": choice(True)})(value, where)


def _trackers(value: Any, where: str) -> None:
    (list_of(text) if isinstance(value, list) else maybe(text))(value, where)


_SHAPES: Kind = mapping(
    {
        "kind": choice("classification", "regression"),
        "input_shape": list_of(whole(1), most=8),
        "outputs": whole(1),
        "outputs_by_split": map_of(text, whole(1)),
    },
    {"training_classes": whole(2), "training_units": whole(1), "vocabulary": whole(2)},
)
"""Of the tasks that the run's network was made for."""

_CONFIG: Kind = mapping(
    {
        **dict.fromkeys(("trainer", "model", "optimizer"), _group),
        "seed": whole(),
        "device": text,
        "test_tasks": whole(),
    },
    {
        **dict.fromkeys(("task", "data", "ood", "learner", "maml", "hyper"), maybe(_group)),
        "resume": maybe(text),
        "deterministic": flag,
        "sweep": choice("separate", "stacked"),
        "init_from": maybe(text),
        "init_skip": maybe(list_of(text)),
        "shapes": maybe(_SHAPES),
        "tracker": _trackers,
    },
)


def upgraded(config: DictConfig, path: Path) -> DictConfig:
    """A configuration that was read from a file, as this version would have written it.

    What a setting left open is as open as it was: a later version that decides otherwise has to
    write down here what was decided then.

    Args:
        config: as it was read.
        path: its file, for messages.

    Raises:
        DataError: an unknown version, or entries that are not what they have to be.
    """
    values = OmegaConf.to_container(config, resolve=False)
    assert isinstance(values, dict)
    version = values.get("version", 1)
    try:
        whole(1)(version, "version")
        if version > CONFIG_VERSION:
            needed = f"{CONFIG_VERSION} is the newest that is known here; update metalearn"
            raise DataError(f"{path}: version {version} of a run's configuration: {needed}")
        _CONFIG(values, "")
        if values.get("task") is not None:
            if values.get("learner") is None:  # which is MAML
                mapping({"maml": anything})(values, "")
        elif values.get("data") is None:
            raise Misfit("data", None, "a mapping, or a task,")
    except Misfit as error:
        raise DataError(f"{path}: this is no run's configuration ({error})") from error
    for before in range(version, CONFIG_VERSION):
        for name, value in _BEFORE[before].items():
            config.setdefault(name, value)
    _take_lower_ends(config)
    config.version = CONFIG_VERSION
    return config


def _take_lower_ends(config: DictConfig) -> None:
    """Write down what trainers of one network once took of a range, which they refuse today."""
    if str(config.trainer.get("_target_")).rpartition(".")[2] in _OF_ONE_NETWORK:
        for name in ("lr", "weight_decay", "label_smoothing", "dropout"):
            value = config.trainer.get(name)
            if isinstance(value, DictConfig) and "low" in value:
                config.trainer[name] = value.low
