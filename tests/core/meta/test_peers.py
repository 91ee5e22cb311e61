"""Other libraries on the same tasks: higher and TorchOpt, second order, float64, a conv net."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from metalearn.core import InnerOptimizer, adam, meta_gradient, sgd
from tests.support import oracles
from tests.support.oracles import assert_trees

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
STEPS = 3
BETAS = (0.5, 0.75)  # exact in float32, in which TorchOpt computes their powers
OPTIMIZERS = pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
MINE = {"sgd": sgd(0.2), "momentum": sgd(0.2, momentum=0.9), "adam": adam(0.02, betas=BETAS)}


def net() -> nn.Module:
    """No bias before the norm: its gradient is rounding, which Adam would magnify."""
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    layers = (nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False), norm, nn.Tanh(), nn.Flatten())
    return oracles.draw(nn.Sequential(*layers, nn.Linear(36, 3)))


def mine(module: nn.Module, optimizer: InnerOptimizer) -> tuple[oracles.Problem, oracles.Tree]:
    case = oracles.classification(module, (1, 6, 6), tasks=3, samples=6, classes=3)
    return case, meta_gradient(*case, optimizer=optimizer, steps=STEPS).grads


def summed(module: nn.Module, tasks: int) -> oracles.Tree:
    return {name: value.grad / tasks for name, value in module.named_parameters()}


@OPTIMIZERS
def test_equals_higher(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        higher = pytest.importorskip("higher")
    make: dict[str, Any] = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.2),
        "momentum": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr=0.02, betas=BETAS, eps=1e-20),
    }
    # Without eps: higher's Adam adds it before the bias correction, as torch 1.2 did.
    no_eps = adam(0.02, betas=BETAS, eps=0.0, eps_root=1e-30)
    module = net()
    case, grads = mine(module, no_eps if name == "adam" else MINE[name])
    tasks = oracles.task_list(case.tasks)
    for (x, y), (query_x, query_y) in tasks:
        inner = make[name](module.parameters())
        with higher.innerloop_ctx(module, inner, copy_initial_weights=False) as (fast, optimizer):
            for _ in range(STEPS):
                optimizer.step(nn.functional.cross_entropy(fast(x), y))
            nn.functional.cross_entropy(fast(query_x), query_y).backward()
    assert_trees(grads, summed(module, len(tasks)), 1e-11)


@OPTIMIZERS
def test_equals_torchopt(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchopt = pytest.importorskip("torchopt")
    make: dict[str, Any] = {
        "sgd": lambda p: torchopt.MetaSGD(p, lr=0.2),
        "momentum": lambda p: torchopt.MetaSGD(p, lr=0.2, momentum=0.9),
        "adam": lambda p: torchopt.MetaAdam(p, lr=0.02, betas=BETAS, eps_root=1e-16),
    }
    module = net()
    case, grads = mine(module, MINE[name])
    start = dict(module.named_parameters())
    total = {key: torch.zeros_like(value) for key, value in start.items()}
    tasks = oracles.task_list(case.tasks)
    for (x, y), (query_x, query_y) in tasks:
        clean = torchopt.extract_state_dict(module, by="reference")
        optimizer = make[name](module)
        for _ in range(STEPS):
            optimizer.step(nn.functional.cross_entropy(module(x), y))
        loss = nn.functional.cross_entropy(module(query_x), query_y)
        for key, grad in zip(start, torch.autograd.grad(loss, list(start.values()))):
            total[key] += grad / len(tasks)
        torchopt.recover_state_dict(module, clean)
    assert_trees(grads, total, 1e-11)
