"""Losses that per-sample gradients are asked of, and those gradients by a loop of backward passes.

Axes: N samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.core import functionalize
from tests.support import oracles

Problem = tuple[nn.Module, Tensor]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=oracles.generator(seed), dtype=torch.float64)


class Tied(nn.Module):
    """One weight as an embedding and as the head; its bias and a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x) * self.scale).mean(1)


class Twice(nn.Module):
    """One layer called twice, and its weight used outside a layer as well."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.spare = nn.Linear(4, 4), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x))) + self.layer.weight.sum()


class Recurrent(nn.Module):
    """A loop over a cell; its first state is made from the input, as vmap needs it (torch 2.14)."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.cell, self.head = kind(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = 0 * x[:, 0, :1].expand(-1, 4)
        state = (state, state) if isinstance(self.cell, nn.LSTMCell) else state
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.attention(x, x, x, need_weights=False)[0]).mean(1)


def conv(channels: int, outputs: int, side: int, **settings: Any) -> Callable[[], Problem]:
    def make() -> Problem:
        net = nn.Sequential(nn.Conv2d(channels, outputs, 3, **settings), nn.Tanh(), nn.Flatten())
        return net, noise(5, channels, side, side)

    return make


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "mlp": lambda: (
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=False)),
        noise(6, 4),
    ),
    "sequence": lambda: (nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Flatten()), noise(5, 6, 4)),
    "few channels": conv(1, 3, 6),
    "few channels, stride": conv(2, 3, 7, stride=2, padding=1),
    "dilation": conv(3, 2, 7, dilation=2, padding=2),
    "many channels": conv(9, 4, 5, padding=1),
    "many channels, large": conv(9, 4, 12, padding=1),
    "groups": conv(4, 4, 5, groups=2),
    "norms": lambda: (
        nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.InstanceNorm2d(4, affine=True),
            nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 2),
        ),
        noise(4, 1, 6, 6),
    ),
    "evaluated batch norm": lambda: (
        nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh()).eval(), noise(5, 4),
    ),
    "embedding": lambda: (
        nn.Sequential(nn.Embedding(9, 3, padding_idx=0), nn.Flatten(), nn.Linear(12, 2)),
        torch.tensor([[0, 1, 1, 2], [3, 0, 0, 8], [1, 1, 1, 1]]),
    ),
    "tied": lambda: (Tied(), torch.tensor([[0, 1, 6], [2, 2, 2], [5, 4, 3]])),
    "twice and unused": lambda: (Twice(), noise(4, 4)),
    "gru cell": lambda: (Recurrent(nn.GRUCell), noise(4, 3, 3)),
    "lstm cell": lambda: (Recurrent(nn.LSTMCell), noise(4, 3, 3)),
    "attention": lambda: (Attention(), noise(4, 3, 4)),
    "encoder, evaluated": lambda: (
        nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Flatten()).eval(),
        noise(3, 2, 4),
    ),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, Callable[..., Tensor], dict[str, Tensor], Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, x = PROBLEMS[name]()
    module = module.double()
    apply, params, buffers = functionalize(module)

    def loss(params: Any, batch: Any) -> Tensor:
        return (apply(params, buffers, batch[0]) - batch[1]).square().sum(1).mean()

    y = noise(*module(x).shape, seed=5)
    return module, loss, params, (x, y)


def looped(loss: Callable[..., Tensor], params: dict[str, Tensor], batch: Any) -> dict[str, Tensor]:
    """A backward pass for each sample."""
    rows = []
    for i in range(len(batch[0])):
        values = [p.detach().requires_grad_() for p in params.values()]
        one = tuple(part[i : i + 1] for part in batch)
        nothing = 0 * sum(v.sum() for v in values)  # a graph for losses without parameters
        value = loss(dict(zip(params, values)), one) + nothing
        rows.append(torch.autograd.grad(value, values, allow_unused=True, materialize_grads=True))
    return {n: torch.stack(column) for n, column in zip(params, zip(*rows))}


def norms_of(grads: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: g.reshape(len(g), -1).norm(dim=1) for n, g in grads.items()}
