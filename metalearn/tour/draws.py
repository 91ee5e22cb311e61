"""Numbers for the stops: float64, from a generator of their own."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["normal", "number"]


def normal(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers of the given shape; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def number(value: float) -> Tensor:
    """A scalar tensor."""
    return torch.tensor(value, dtype=torch.float64)
