"""Inner optimisers: equal to torch.optim where nothing is differentiated, finite where it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import InnerOptimizer, adam, sgd
from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from tests.support import oracles

START = {"w": torch.tensor([[1.0, -2.0], [0.5, 3.0]]).double(), "b": torch.tensor(0.7).double()}


def loss_of(params: dict[str, Tensor]) -> Tensor:
    return (params["w"].sin() * params["b"]).sum() + (params["w"] ** 4).mean() + params["b"] ** 2


def run_pure(pair: InnerOptimizer, steps: int = 5) -> dict[str, Tensor]:
    params, state = START, pair.init(START)
    for _ in range(steps):
        updates, state = pair.update(torch.func.grad(loss_of)(params), state, params)
        params = tree_map(torch.add, params, updates)
    return params


def run_torch(make: Callable[[Any], torch.optim.Optimizer], steps: int = 5) -> dict[str, Tensor]:
    params = {name: value.clone().requires_grad_() for name, value in START.items()}
    optimizer = make(list(params.values()))
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(params).backward()
        optimizer.step()
    return {name: value.detach() for name, value in params.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"momentum": 0.5, "weight_decay": 0.2},
    ],
)
def test_sgd_equals_torch(settings: dict[str, float]) -> None:
    expected = run_torch(lambda values: torch.optim.SGD(values, lr=0.05, **settings))
    oracles.assert_trees(run_pure(sgd(0.05, **settings)), expected, 1e-13)
    oracles.assert_trees(run_pure(sgd(torch.tensor(0.05).double(), **settings)), expected, 1e-7)


@pytest.mark.parametrize(
    "settings", [{}, {"betas": (0.5, 0.9)}, {"eps": 1e-3}, {"betas": (0.0, 0.0)}]
)
def test_adam_equals_torch(settings: dict[str, Any]) -> None:
    expected = run_torch(lambda values: torch.optim.Adam(values, lr=0.05, **settings))
    oracles.assert_trees(run_pure(adam(0.05, **settings)), expected, 1e-12)


def test_nothing_is_written_in_place() -> None:
    grads = {name: torch.ones_like(value) for name, value in START.items()}
    before = tree_map(torch.clone, START)
    for pair in (sgd(0.1, momentum=0.9, weight_decay=0.1), adam(0.1)):
        first = pair.init(START)
        kept = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, first)
        _, second = pair.update(grads, first, START)
        pair.update(grads, second, START)
        oracles.assert_trees(START, before, 0.0)
        oracles.assert_trees(grads, tree_map(torch.ones_like, grads), 0.0)
        for old, now in zip(torch.utils._pytree.tree_leaves(kept),
                            torch.utils._pytree.tree_leaves(first)):  # fmt: skip
            assert bool(torch.as_tensor(old == now).all())


def test_second_derivative_of_adam_is_finite_at_a_gradient_of_zero() -> None:
    pair = adam(0.1)

    def moved(theta: Tensor) -> Tensor:
        state, here = pair.init(theta), theta
        for _ in range(2):  # L = (θ² / 2)[0]: the gradient is θ at the first entry, else 0
            grads = here * here.new_tensor([1.0, 0.0])
            updates, state = pair.update(grads, state, here)
            here = here + updates
        return (here**2).sum()

    for theta in (torch.zeros(2).double(), torch.tensor([0.3, 0.0]).double(), torch.zeros(2)):
        gradient = torch.func.grad(moved)(theta)
        hessian = torch.func.jacrev(torch.func.grad(moved))(theta)
        assert bool(torch.isfinite(gradient).all()) and bool(torch.isfinite(hessian).all())


@pytest.mark.parametrize("make", [sgd, adam])
def test_a_stack_of_learning_rates_under_vmap(make: Callable[..., InnerOptimizer]) -> None:
    rates = torch.tensor([0.01, 0.1, 0.3]).double()
    batched = torch.func.vmap(lambda lr: run_pure(make(lr), 3))(rates)
    for i, lr in enumerate(rates.tolist()):
        oracles.assert_trees(
            {name: value[i] for name, value in batched.items()}, run_pure(make(lr), 3), 1e-12
        )


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (sgd, {"lr": 0.0}, r"lr=0\.0: a finite number above 0 is needed"),
        (sgd, {"lr": -1}, r"lr=-1: a finite number above 0"),
        (sgd, {"lr": math.inf}, r"lr=inf: a finite number above 0"),
        (adam, {"lr": math.nan}, r"lr=nan: a finite number above 0"),
        (sgd, {"lr": torch.ones(1, 1)}, r"lr=\[1, 1\]: a number, a scalar tensor or one with"),
        (sgd, {"lr": 0.1, "momentum": 1.0}, r"momentum=1\.0: a number in \[0, 1\)"),
        (sgd, {"lr": 0.1, "momentum": -0.1}, r"momentum=-0\.1: a number in \[0, 1\)"),
        (sgd, {"lr": 0.1, "weight_decay": -1}, r"weight_decay=-1: a number of at least 0"),
        (adam, {"lr": 0.1, "betas": (1.0, 0.9)}, r"betas\[0\]=1\.0: a number in \[0, 1\)"),
        (adam, {"lr": 0.1, "betas": (0.9, -0.5)}, r"betas\[1\]=-0\.5: a number in \[0, 1\)"),
        (adam, {"lr": 0.1, "eps": -1e-8}, r"eps=-1e-08: a number of at least 0"),
        (adam, {"lr": 0.1, "eps_root": 0.0}, r"eps_root=0\.0: a number above 0"),
    ],
)
def test_values_out_of_range_are_refused(
    make: Callable[..., InnerOptimizer], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        make(**settings)


@pytest.mark.parametrize("rate", [0.05, torch.tensor(0.05).double()], ids=["number", "tensor"])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.5, "weight_decay": 0.2}])
def test_a_step_adds_the_updates(rate: Any, settings: dict[str, float]) -> None:
    """Of SGD, which does so in one pass, and of a pair that has no step of its own."""
    pair = sgd(rate, **settings)
    plain = InnerOptimizer(pair.init, pair.update)
    assert pair.fused is not None and plain.fused is None
    found = []
    for optimizer in (pair, plain):
        params, state = START, optimizer.init(START)
        for _ in range(3):
            params, state = optimizer.step(torch.func.grad(loss_of)(params), state, params)
        found.append(params)
    oracles.assert_trees(found[0], run_pure(pair, 3), 1e-14)
    oracles.assert_trees(found[1], run_pure(pair, 3), 1e-15)
