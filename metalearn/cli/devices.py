"""The device that a setting names."""

from __future__ import annotations

import torch

from metalearn.cli.launches import number_of_job
from metalearn.errors import SettingError
from metalearn.ranks import launched

__all__ = ["device_of"]


def device_of(name: str) -> torch.device:
    """The device of that name; ``"auto"`` is an accelerator, where there is one.

    Of several ranks on a machine each has one of its own; jobs of a sweep that run side by side
    take turns.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is None:
            return torch.device("cpu")
        launch = launched()
        if launch is None:
            job = number_of_job()
            if job is None:
                return accelerator
            return torch.device(accelerator.type, job % torch.accelerator.device_count())
        count = torch.accelerator.device_count()
        if launch.local_rank >= count:
            accepted = f"device=cpu, or at most {count} ranks on this machine, one for each device"
            raise SettingError("device", name, f"{accepted}, are needed")
        return torch.device(accelerator.type, launch.local_rank)
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        raise SettingError(
            "device", name, "auto, cpu or a device that torch finds here is needed"
        ) from error
    return device
