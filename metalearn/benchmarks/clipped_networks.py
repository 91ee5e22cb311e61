"""Networks whose clipped gradients are timed, of layers that other libraries know too.

Axes: N samples of a batch, S tokens of a sample, D numbers of a token, H heads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CLIPPED_NETWORKS", "ClippedNetwork", "mnist_network"]

Problem = tuple[nn.Module, Tensor, Tensor]


@dataclass(frozen=True)
class ClippedNetwork:
    """A network and inputs of noise with labels."""

    title: str
    make: Callable[[], nn.Module]
    draw: Callable[[int, torch.Generator], Tensor]
    samples: int = 256

    def problem(self, count: int) -> Problem:
        """Network, inputs, targets; the same at every call."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = self.make()
        return module, self.draw(count, torch.Generator().manual_seed(0)), torch.arange(count) % 10

    @staticmethod
    def copied(problem: Problem) -> Problem:
        """With a network that may be wrapped."""
        module, *data = problem
        return copy.deepcopy(module), data[0], data[1]


class _Block(nn.Module):
    """A layer of a transformer, in linear layers and torch's attention."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.before(x)
        heads = [
            layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        x = x + self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        inner: Tensor = self.narrow(F.gelu(self.widen(self.between(x))))
        return x + inner


class _Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.block, self.head = (
            nn.Embedding(1000, 64),
            _Block(64, 4, 256),
            nn.Linear(64, 10),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        # data of trainers are floats
        logits: Tensor = self.head(self.block(self.table(tokens.long())).mean(1))
        return logits


def mnist_network() -> nn.Module:
    """The network of opacus' MNIST example."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.Flatten(), nn.Linear(32 * 4 * 4, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def _group_norms() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 32, 1), (32, 64, 2), (64, 64, 2)):
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        layers += [convolution, nn.GroupNorm(8, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def _noise(*shape: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda count, source: torch.randn(count, *shape, generator=source)


def _tokens(count: int, source: torch.Generator) -> Tensor:
    return torch.randint(1000, (count, 64), generator=source)


CLIPPED_NETWORKS: dict[str, ClippedNetwork] = {
    "mlp": ClippedNetwork("MLP 784-256-128-10", _mlp, _noise(784)),
    "mnist": ClippedNetwork("opacus' MNIST network", mnist_network, _noise(1, 28, 28)),
    "group_norms": ClippedNetwork("GroupNorm network, 3×16×16", _group_norms, _noise(3, 16, 16)),
    "text": ClippedNetwork("embedding and transformer layer, 64 tokens", _Text, _tokens),
}
"""By name, with batches of 256."""
