"""The device that a setting names."""

from __future__ import annotations

import os

import torch

from metalearn.cli.launching.launches import number_of_job
from metalearn.errors import SettingError
from metalearn.ranks.launch import Launch, launched

__all__ = ["device_of", "identity_of"]

_SHOWN = {
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
}
"""Variables by which a process is shown some of a machine's devices."""


def device_of(name: str) -> torch.device:
    """The device of that name; ``"auto"`` is an accelerator, where there is one.

    Of several ranks on a machine each has one of its own, by ``"auto"`` or a kind such as
    ``"cuda"``; with ``"auto"`` jobs of a sweep that run side by side take turns.

    Raises:
        SettingError: torch does not find it here, or ranks of this machine would share it.
    """
    launch = launched()
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is None:
            return torch.device("cpu")
        return _in_turn(accelerator) if launch is None else _own(accelerator, name, launch)
    try:
        device = torch.device(name)
        if launch is not None and device.type != "cpu":
            device = _of_rank(device, name, launch)
        torch.ones(1, device=device).item()  # of a rank on its own: a card is not looked at twice
    except (RuntimeError, AssertionError, TypeError) as error:
        raise SettingError(
            "device", name, "auto, cpu or a device that torch finds here is needed"
        ) from error
    return device


def _of_rank(device: torch.device, name: str, launch: Launch) -> torch.device:
    """The device that is meant by a rank's setting.

    Raises:
        SettingError: ranks of this machine would share it.
    """
    if device.index is None:
        here = torch.accelerator.current_accelerator(check_available=True)
        return device if here is None or here.type != device.type else _own(device, name, launch)
    if launch.local_count > 1:
        accepted = f"device={device.type} is needed, so that each rank has one of its own"
        raise SettingError("device", name, accepted)
    return device


def identity_of(device: torch.device) -> str:
    """What tells a device from the others of its machine, whatever a process calls it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_properties(device).uuid)
    shown = [f"{name}={os.environ[name]}" for name in sorted(_SHOWN & set(os.environ))]
    return " ".join([str(device), *shown])


def _in_turn(device: torch.device) -> torch.device:
    """The device of a process by itself: of a job of a sweep, by its number."""
    job = number_of_job()
    if job is None:
        return device
    return torch.device(device.type, job % torch.accelerator.device_count())


def _own(device: torch.device, name: str, launch: Launch) -> torch.device:
    """The device of a rank among those of its machine.

    Where a rank sees one alone, that is its own: a scheduler has shown it no others.
    """
    count = torch.accelerator.device_count()
    if count == 1 and _SHOWN & set(os.environ):
        return torch.device(device.type, 0)
    if launch.local_rank >= count:
        accepted = f"device=cpu, or at most {count} ranks on this machine, one for each device"
        raise SettingError("device", name, f"{accepted}, are needed")
    return torch.device(device.type, launch.local_rank)
