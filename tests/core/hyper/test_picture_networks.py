"""Gradients through runs of convolutional networks against differences of runs, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import adam, check_hyper_gradient, functionalize, hyper_gradient, sgd
from tests.support.weighted_run import noise

N, R = 24, 3
X, Y = noise(N, 1, 6, 6, seed=1), torch.arange(N) % 3
TARGETS = noise(R, 1, 6, 6, seed=2), torch.arange(R)
NETWORKS = {
    "conv": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.GELU(), nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3),
    ),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.GELU(), nn.Linear(5, 3)),
}  # fmt: skip
OPTIMIZERS = {"sgd": sgd(0.2), "momentum": sgd(0.1, momentum=0.9), "adam": adam(3e-3)}


def batch(k: int) -> Tensor:
    return torch.randperm(N, generator=torch.Generator().manual_seed(k))[:6]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_weights_are_what_two_runs_say(name: str, optimizer: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, params, buffers = functionalize(NETWORKS[name]().double())

    def inner(p: Any, weights: Tensor, rows: Tensor) -> Tensor:
        losses = F.cross_entropy(network(p, buffers, X[rows]), Y[rows], reduction="none")
        return (weights[rows] * losses).mean()

    def outer(p: Any, weights: Tensor, targets: Any) -> Tensor:
        return F.cross_entropy(network(p, buffers, targets[0]), targets[1], reduction="none")

    run: Any = (inner, outer, params, torch.ones(N, dtype=torch.float64), batch, TARGETS)
    how: Any = {"optimizer": OPTIMIZERS[optimizer], "steps": 20}
    found = hyper_gradient(*run, **how)
    assert found.hyper_grads.shape == (R, N)
    errors = []
    for spacing in (1e-4, 1e-5, 1e-6):
        generator = torch.Generator().manual_seed(0)
        check = check_hyper_gradient(found, *run, **how, generator=generator, spacing=spacing)
        errors.append(check.error)
    assert min(errors) < 1e-6, errors
