"""Random tensors from an explicit generator, on whichever device it lives.

Inside vmap they follow its ``randomness``: ``"same"`` for all or ``"different"`` for each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["normal", "signs", "uniform"]


def normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal, with the type and device of ``like``."""
    size, device = tuple(shape), generator.device
    drawn = torch.randn(size, generator=generator, dtype=like.dtype, device=device)
    return drawn.to(like.device)


def uniform(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform on [0, 1), with the type and device of ``like``."""
    size, device = tuple(shape), generator.device
    drawn = torch.rand(size, generator=generator, dtype=like.dtype, device=device)
    return drawn.to(like.device)


def signs(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    """+1 or −1 with equal probability (Rademacher), with the type and device of ``like``."""
    return torch.where(uniform(shape, like, generator) < 0.5, -1.0, 1.0).to(like.dtype)
