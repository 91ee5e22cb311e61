"""Small networks in float64 for the tests of ensembles."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.support.oracles import draw, generator


def small_conv(seed: int, *, outputs: int = 3, tracks: bool = True) -> nn.Module:
    norm = nn.BatchNorm2d(3, track_running_stats=tracks)
    layers = (nn.Conv2d(1, 3, 3, padding=1), norm, nn.ReLU(), nn.Flatten())
    return draw(nn.Sequential(*layers, nn.Linear(48, outputs)), seed)


class Tied(nn.Module):
    """The last layer has the weight of the first; a scale that is a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("shift", torch.tensor([0.5]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.last(self.first(x).tanh()) + self.shift


def tied(seed: int) -> nn.Module:
    return draw(Tied(), seed)


def pictures(seed: int = 0, samples: int = 5) -> Tensor:
    return torch.randn(samples, 1, 4, 4, generator=generator(seed), dtype=torch.float64)


def rows(seed: int = 0, samples: int = 5) -> Tensor:
    return torch.randn(samples, 4, generator=generator(seed), dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
