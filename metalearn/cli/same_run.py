"""Whether ranks are about to share the same run.

Axes: R ranks.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import socket
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from metalearn.cli.devices import identity_of
from metalearn.cli.processes import check_alike
from metalearn.cli.run_config import used_part
from metalearn.data.checksums import data_checksum
from metalearn.errors import SettingError
from metalearn.ranks import Ranks
from metalearn.trainers import Trainer

__all__ = ["check_own_devices", "check_same_data", "check_same_settings"]


def check_same_settings(ranks: Ranks, config: DictConfig) -> None:
    """Refuse ranks with other settings, as by an interpolation or a file that is not the same.

    Args:
        ranks: that share a run.
        config: that trains, or has trained.

    Raises:
        SettingError: names the first that differs, and the rank.
    """
    if ranks.count > 1:
        container = OmegaConf.to_container(used_part(config), resolve=True)
        check_alike(ranks, {f"setting {name}": text for name, text in _flat("", container).items()})


def check_same_data(ranks: Ranks, trainer: Trainer) -> None:
    """Refuse ranks with other data to train on.

    Of private data a sentence has no checksum that somebody else could find again.

    Raises:
        SettingError: names the rank.
    """
    if ranks.count == 1:
        return
    known = trainer.data_checksum
    private = data_checksum(_data_of(trainer)) if known is None else None
    ranks.gather()  # one machine may have prepared the data, where another had them already
    check_own_devices(ranks, trainer.loop.device)
    salt = ranks.agreed(secrets.token_hex(16))
    if private is not None:
        known = hashlib.sha256((salt + private).encode()).hexdigest()
    check_alike(ranks, {"data": str(known)})


def check_own_devices(ranks: Ranks, device: torch.device) -> None:
    """Refuse ranks that were shown the same card, as by one ``CUDA_VISIBLE_DEVICES`` for all.

    Raises:
        SettingError: names two of them.
    """
    mine = None if device.type == "cpu" else [socket.gethostname(), identity_of(device)]
    every = ranks.of_each(mine)
    for rank, other in enumerate(every):
        if other is not None and other in every[:rank]:
            accepted = (
                f"a device of its own is needed for each rank: ranks {every.index(other)} and "
                f"{rank} have been shown the same one"
            )
            raise SettingError("device", str(device), accepted)


def _data_of(trainer: Any) -> object:
    """What a trainer of one network or of tasks, or the first of several, trains on."""
    first = getattr(trainer, "trainers", [trainer])[0]
    return getattr(getattr(first, "tasks", first), "data", None)


def _flat(prefix: str, value: Any) -> dict[str, str]:
    """The settings within a node by their whole names, as texts."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: json.dumps(value, default=str)}
    found: dict[str, str] = {}
    for name, part in value.items():
        found |= _flat(f"{prefix}.{name}" if prefix else str(name), part)
    return found
