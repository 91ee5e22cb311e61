"""Which devices compute in float64, and the widest type of each."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["has_float64", "widest"]

_WITH_FLOAT64 = {"cpu": True, "cuda": True, "meta": True, "mps": False}
"""By kind of device; of others it is found out."""


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64: Apple's MPS does not, nor do some of Intel's cards."""
    if device.type not in _WITH_FLOAT64:
        try:
            torch.zeros(1, dtype=torch.float64, device=device).add_(1)
            _WITH_FLOAT64[device.type] = True
        except (RuntimeError, TypeError):
            _WITH_FLOAT64[device.type] = False
    return _WITH_FLOAT64[device.type]


def widest(x: Tensor) -> Tensor:
    """X in float64 where its device has that, else in float32."""
    return x.double() if has_float64(x.device) else x.float()
