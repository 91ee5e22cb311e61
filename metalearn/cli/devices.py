"""The device that a setting names."""

from __future__ import annotations

import torch

from metalearn.errors import SettingError

__all__ = ["device_of"]


def device_of(name: str) -> torch.device:
    """The device of that name; ``"auto"`` is an accelerator, where there is one."""
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
