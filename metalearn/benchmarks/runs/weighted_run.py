"""What is raced: a training on weighted digits, and the losses after it.

Axes: K steps, N examples, B samples of a batch, R outer losses, C classes.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metalearn.data import digits_data
from metalearn.models import MLP

__all__ = ["HyperProblem", "WeightedRun", "batches", "digits"]

_MEAN_OF = 100  # samples in a single outer loss


@dataclass(frozen=True)
class WeightedRun:
    """SGD with momentum down (1/B)·Σ w_i·ℓ_i + (decay/2)·‖θ‖², then losses of targets."""

    network: nn.Module
    """As it stands before the first step."""
    examples: tuple[Tensor, Tensor]
    rows: tuple[Tensor, ...]
    """K batches of ``[B]`` numbers of examples."""
    rates: tuple[float, ...]
    """K."""
    targets: tuple[Tensor, Tensor]
    momentum: float = 0.9
    decay: float = 0.0
    mean: bool = False
    """Whether the outer loss is the mean over the targets, instead of one for each."""

    @property
    def params(self) -> dict[str, Tensor]:
        """At the start."""
        return {name: p.detach().clone() for name, p in self.network.named_parameters()}

    @property
    def weights(self) -> Tensor:
        """``[N]``, all 1."""
        return self.examples[0].new_ones(len(self.examples[1]))

    def logits(self, params: dict[str, Tensor], inputs: Tensor) -> Tensor:
        """``[B, C]``."""
        found: Tensor = functional_call(self.network, params, (inputs,))
        return found

    def weighted(self, logits: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
        """(1/B)·Σ w_i·ℓ_i of a batch whose logits these are."""
        losses = F.cross_entropy(logits, self.examples[1][rows], reduction="none")
        return (weights[rows] * losses).mean()

    def batch_loss(self, params: dict[str, Tensor], weights: Tensor, rows: Tensor) -> Tensor:
        """What a step descends."""
        loss = self.weighted(self.logits(params, self.examples[0][rows]), weights, rows)
        if not self.decay:
            return loss
        return loss + 0.5 * self.decay * sum(p.square().sum() for p in params.values())

    def target_loss(self, logits: Tensor) -> Tensor:
        """A scalar, or ``[R]``."""
        return F.cross_entropy(logits, self.targets[1], reduction="mean" if self.mean else "none")

    def outer(self, params: dict[str, Tensor]) -> Tensor:
        """The same of parameters."""
        return self.target_loss(self.logits(params, self.targets[0]))

    def to(self, dtype: torch.dtype) -> WeightedRun:
        """In another precision, with a network of its own."""
        network = deepcopy(self.network).to(dtype)
        (x, y), (at, labels) = self.examples, self.targets
        return replace(
            self, network=network, examples=(x.to(dtype), y), targets=(at.to(dtype), labels)
        )


@dataclass(frozen=True)
class HyperProblem:
    """The gradient of losses after K steps with respect to a weight on every example."""

    steps: int = 20
    losses: int = 1
    """R; 1 is the mean over a hundred validation samples, others are one sample each."""
    examples: int = 1000
    batch: int = 100
    hidden: tuple[int, ...] = (64, 64)

    def run(self) -> WeightedRun:
        """The same at every call."""
        x, y, at, labels = digits()
        count = _MEAN_OF if self.losses == 1 else self.losses
        network = MLP((1, 8, 8), 10, hidden=tuple(self.hidden), activation="gelu", seed=0)
        return WeightedRun(
            network,
            (x[: self.examples], y[: self.examples]),
            batches(self.examples, self.batch, self.steps),
            (0.1,) * self.steps,
            (at[:count], labels[:count]),
            mean=self.losses == 1,
        )


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs and classes of the training part, and of the validation part."""
    data = digits_data(seed=0)
    return (*data.part("train"), *data.part("validation"))


def batches(examples: int, batch: int, steps: int) -> tuple[Tensor, ...]:
    """Examples in a new order for every pass over them."""
    source, rows = torch.Generator().manual_seed(1), list[Tensor]()
    while len(rows) < steps:
        rows += torch.split(torch.randperm(examples, generator=source), batch)
    return tuple(rows[:steps])
