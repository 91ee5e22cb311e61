"""Modules for the tests of layers over tasks, and how they are held against the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import meta_gradient, sgd
from tests.support import oracles
from tests.support.oracles import Problem, assert_trees

PICTURE = (2, 6, 5)
exact_methods = pytest.mark.parametrize("method", ["reverse", "mixed"])


def both(case: Problem, tolerance: float = 1e-10, **settings: Any) -> dict[str, Tensor]:
    """Hold batched against loop; the gradients."""
    settings = {"optimizer": sgd(0.3, momentum=0.5), "steps": 2, **settings}
    batched, loop = (
        meta_gradient(*case, engine=engine, **settings) for engine in ("batched", "loop")
    )
    assert_trees(batched.grads, loop.grads, tolerance)
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(batched.query_losses, loop.query_losses, **close)
    torch.testing.assert_close(batched.support_losses, loop.support_losses, **close)
    return batched.grads


def norm(channels: int, **settings: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False, **settings)


def frozen(layer: nn.Module) -> nn.Module:
    """A batch norm in eval mode with statistics that are not 0 and 1."""
    source = oracles.generator(7)
    layer.running_mean.copy_(torch.randn(layer.num_features, generator=source))
    layer.running_var.copy_(0.5 + torch.rand(layer.num_features, generator=source))
    return layer.eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=oracles.generator(3), dtype=torch.float64)


class BasicBlock(nn.Module):
    """A residual block with layers as attributes and a projection beside it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = norm(outputs), norm(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.beside = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        z = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(z)) + self.beside(x))


def head(inputs: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 2)]


def shared() -> list[nn.Module]:
    layer = nn.Conv2d(2, 2, 3, padding=1)
    return [layer, nn.Tanh(), layer, norm(2), *head(2)]


STACKS: dict[str, Callable[[], list[nn.Module]]] = {
    "residual": lambda: [BasicBlock(2, 3, 2), BasicBlock(3, 3, 1), *head(3)],
    "conv_norm_relu": lambda: [
        nn.Conv2d(2, 3, 3, 2, 1), norm(3), nn.ReLU(), nn.Conv2d(3, 3, 2), norm(3), nn.ReLU(),
        nn.Flatten(), nn.Linear(12, 2),
    ],
    "folding": lambda: [nn.Conv2d(2, 9, 2), norm(9), nn.ReLU(), norm(9), nn.Softplus(), *head(9)],
    "chained": lambda: [
        nn.Conv2d(2, 9, 2), norm(9), nn.ReLU(), nn.Conv2d(9, 3, 2, padding=1), norm(3), nn.ReLU(),
        nn.Conv2d(3, 3, 2), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.ReLU(), *head(4),
    ],
    "product": lambda: [
        nn.Conv2d(2, 9, 2), norm(9), nn.Conv2d(9, 3, 2), norm(3), nn.Softplus(), *head(3),
    ],
    "product_at_the_end": lambda: [nn.Flatten(2), nn.Unflatten(2, (6, 5)), nn.Conv2d(2, 9, 2),
        norm(9), nn.Sequential(nn.Tanh(), *head(9))],
    "norm_alone": lambda: [norm(2), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.ReLU(), norm(3), *head(3)],
    "no_affine": lambda: [
        nn.Conv2d(2, 3, 3), norm(3, affine=False), nn.Tanh(),
        nn.InstanceNorm2d(3), nn.GroupNorm(3, 3, affine=False), *head(3),
    ],
    "nested": lambda: [
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.Sequential(norm(3), nn.Identity(), nn.ReLU())),
        nn.Sequential(), nn.Sequential(*head(3)),
    ],
    "pooling": lambda: [
        nn.Conv2d(2, 3, 3, padding=1), norm(3), nn.Softplus(), nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2, padding="same"), nn.GELU(), nn.AvgPool2d((3, 1)), nn.Flatten(),
        nn.Linear(8, 2),
    ],
    "layer_norm": lambda: [
        nn.Conv2d(2, 3, 3), nn.LayerNorm([3, 4, 3]), nn.SiLU(), nn.Flatten(2),
        nn.Linear(12, 4), nn.LayerNorm(4, bias=False), nn.ELU(), nn.Flatten(), nn.Linear(12, 2),
    ],
    "group_norm": lambda: [nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), *head(4)],
    "instance_norm": lambda: [
        nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.Sigmoid(), *head(3),
    ],
    "vectors": lambda: [
        nn.Flatten(), nn.Linear(60, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU(),
        nn.Linear(4, 4, bias=False), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2),
    ],
    "signals": lambda: [
        nn.Flatten(2), nn.BatchNorm1d(2, track_running_stats=False), nn.Softplus(),
        nn.InstanceNorm1d(2, affine=True), nn.Flatten(), nn.Linear(60, 2),
    ],
    "frozen_norm": lambda: [nn.Conv2d(2, 3, 3), frozen(nn.BatchNorm2d(3)), nn.Softplus(), *head(3)],
    "grouped": lambda: [nn.Conv2d(2, 4, 3, groups=2), norm(4), nn.Softplus(), *head(4)],
    "circular": lambda: [
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), norm(3), nn.Softplus(), *head(3),
    ],
    "in_place": lambda: [
        nn.Conv2d(2, 3, 3), nn.LeakyReLU(inplace=True), nn.Conv2d(3, 3, 2), nn.ReLU(inplace=True),
        norm(3), nn.SiLU(inplace=True), *head(3),
    ],
    "unknown_layer": lambda: [nn.Conv2d(2, 3, 3), norm(3), nn.Hardtanh(), norm(3), *head(3)],
    "transposed": lambda: [nn.ConvTranspose2d(2, 3, 2), norm(3), nn.Softplus(), *head(3)],
    "shared_layer": shared,
}  # fmt: skip
