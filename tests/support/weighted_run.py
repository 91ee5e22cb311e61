"""A short run on weighted samples with a learnt decay, and losses of its end, in float64.

Axes: K steps, N samples, R outer losses.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core import HyperGradient, hyper_gradient, sgd

K, N, D, H, C = 7, 12, 3, 5, 3


def noise(*shape: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draws, dtype=torch.float64)


def start(seed: int = 0) -> dict[str, Tensor]:
    return {
        "a": noise(D, H, seed=seed), "b": noise(H, seed=seed + 1) / 9,
        "c": noise(H, C, seed=seed + 2), "unmoved": noise(H, seed=seed + 3),
    }  # fmt: skip


def network(params: Any, x: Tensor) -> Tensor:
    hidden = F.gelu(x @ params["a"] + params["b"]) * params["unmoved"]
    found: Tensor = hidden @ params["c"]
    return found


X, Y = noise(N, D, seed=10), torch.arange(N) % C
HYPER = {"weights": torch.rand(N, generator=torch.Generator().manual_seed(2)).double(),
         "decay": torch.tensor(0.05, dtype=torch.float64)}  # fmt: skip
OUTER = noise(9, D, seed=11), torch.arange(9) % C


def batch(k: int) -> Tensor:
    """Which samples step k sees."""
    return (torch.arange(4) * 5 + 3 * k) % N


def inner(params: Any, hyper: Any, which: Tensor) -> Tensor:
    losses = F.cross_entropy(network(params, X[which]), Y[which], reduction="none")
    size = sum((p * p).sum() for p in params.values())
    return (hyper["weights"][which] * losses).mean() + hyper["decay"] * size


def outer(params: Any, hyper: Any, test: Any) -> Tensor:
    return F.cross_entropy(network(params, test[0]), test[1]) + 0.1 * hyper["decay"]


def each(params: Any, hyper: Any, test: Any) -> Tensor:
    losses = F.cross_entropy(network(params, test[0]), test[1], reduction="none")
    return losses + 0.1 * hyper["decay"]


def found_by(method: Any = "auto", outer_loss: Any = outer, **more: Any) -> HyperGradient:
    given: dict[str, Any] = {"optimizer": sgd(0.3), "frozen": "unmoved", "steps": K}
    return hyper_gradient(
        inner, outer_loss, start(), HYPER, more.pop("batches", batch), OUTER,
        method=method, **given | more,
    )  # fmt: skip
