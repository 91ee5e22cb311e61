"""The gradient at a minimum: against closed forms, and against the run that leads there.

Axes: N samples, R outer losses.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import HyperGradient, ImplicitSolver, hyper_gradient, sgd
from metalearn.errors import SettingError
from tests.support.oracles import assert_trees
from tests.support.weighted_run import noise

X, Y, Q = noise(6, 2, seed=4), noise(6, seed=5), noise(3, 2, seed=6)
RIDGE = 0.5
SERIES: dict[str, Any] = {"solver": "neumann", "iterations": 300, "scale": 0.05}
SOLVERS = {
    "cg": ImplicitSolver(iterations=4, batch=0),
    "neumann": ImplicitSolver(**SERIES, batch=0),
    "cg by differences": ImplicitSolver(iterations=4, product="difference", batch=0),
    "neumann by differences": ImplicitSolver(**SERIES, product="difference", batch=0),
}


def weighted(p: Any, h: Any, b: Any) -> Tensor:
    x, y = X[:3] if b == 0 else X[3:], Y[:3] if b == 0 else Y[3:]
    w = h["w"][:3] if b == 0 else h["w"][3:]
    return 0.5 * (w * (x @ p["t"] * p["scale"] - y) ** 2).sum() + 0.25 * RIDGE * (p["t"] ** 2).sum()


def whole(p: Any, h: Any, b: Any) -> Tensor:
    return weighted(p, h, 0) + weighted(p, h, 1)


def each(p: Any, h: Any, b: Any) -> Tensor:
    return 0.5 * (Q @ p["t"] * p["scale"] - h["level"]) ** 2


def total(p: Any, h: Any, b: Any) -> Tensor:
    return each(p, h, b).sum()


HYPER = {"w": torch.rand(6, generator=torch.Generator().manual_seed(1)).double() + 0.5,
         "level": torch.tensor(0.3).double()}  # fmt: skip
START = {"t": torch.zeros(2).double(), "scale": torch.tensor(1.2).double()}


def at_minimum(outer_loss: Any = each, solver: Any = None, **more: Any) -> HyperGradient:
    given: dict[str, Any] = {"optimizer": sgd(0.05), "steps": 800, "frozen": "scale"}
    given |= {"method": "implicit", "implicit": solver or ImplicitSolver(batch=0)} | more
    loss = given.pop("inner", whole)
    return hyper_gradient(loss, outer_loss, START, HYPER, lambda k: k % 2, None, **given)


def closed(outer_loss: Any = each) -> Any:
    """Of the minimum (SᵀWS + λI)⁻¹·SᵀW·y, S = scale·X, by autograd through the solve."""

    def of(h: Any, scale: Tensor) -> Tensor:
        s = X * scale
        hessian = s.T @ (h["w"][:, None] * s) + RIDGE * torch.eye(2)
        theta = torch.linalg.solve(hessian, s.T @ (h["w"] * Y))
        found: Tensor = outer_loss({"t": theta, "scale": scale}, h, None)
        return found

    return torch.func.jacrev(of, argnums=(0, 1))(HYPER, START["scale"])


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("outer_loss", [each, total])
def test_it_is_that_of_the_minimum(name: str, outer_loss: Any) -> None:
    found = at_minimum(outer_loss, SOLVERS[name], steps=300)
    hyper_grads, scale_grad = closed(outer_loss)
    assert_trees(found.hyper_grads, hyper_grads, 1e-7)
    torch.testing.assert_close(found.grads["scale"], scale_grad, rtol=1e-7, atol=1e-9)
    assert not found.grads["t"].any()
    assert float(found.diagnostics["residual"].max()) < 1e-7
    assert found.diagnostics["residual"].shape == found.loss.shape
    assert float(found.diagnostics["stationarity"]) < 1e-5


def test_it_is_the_unrolled_gradient_at_convergence() -> None:
    unrolled = at_minimum(method="mixed", implicit=None)
    assert_trees(at_minimum().hyper_grads, unrolled.hyper_grads, 1e-9)


def test_without_a_batch_the_loss_is_the_mean_of_all() -> None:
    def halves(p: Any, h: Any, b: Any) -> Tensor:
        return whole(p, h, b) / 2

    found = at_minimum(solver=ImplicitSolver(iterations=3), inner=weighted, steps=2)
    solver = ImplicitSolver(iterations=3, batch=0)
    there = hyper_gradient(
        halves, each, found.params, HYPER, [0], None, optimizer=sgd(1e-12), frozen="scale",
        method="implicit", implicit=solver,
    )  # fmt: skip
    assert_trees(found.hyper_grads, there.hyper_grads, 1e-9)


def test_damping_is_added_to_the_hessian() -> None:
    damping = 0.7
    found = at_minimum(total, ImplicitSolver(iterations=4, damping=damping, batch=0))
    theta, scale = found.params["t"], START["scale"]
    s = X * scale
    hessian = s.T @ (HYPER["w"][:, None] * s) + (RIDGE + damping) * torch.eye(2)
    slope = scale * Q.T @ (Q @ theta * scale - HYPER["level"])
    rows = s * (s @ theta - Y)[:, None]
    expected = -rows @ torch.linalg.solve(hessian, slope)
    torch.testing.assert_close(found.hyper_grads["w"], expected, rtol=1e-8, atol=1e-10)


def test_what_the_optimiser_learns_has_no_part_in_a_minimum() -> None:
    rate = torch.tensor(0.05, requires_grad=True).double()
    found = at_minimum(optimizer=sgd(rate), steps=20)
    assert found.optimizer_grads.shape == (3,) and not found.optimizer_grads.any()


@pytest.mark.parametrize("name", ["memory", "kept", "progress"])
def test_what_belongs_to_the_walk_back_is_refused(name: str) -> None:
    value = {"memory": "1GB", "kept": {}, "progress": print}[name]
    with pytest.raises(SettingError, match=f"{name}=.*None is needed with method='implicit'"):
        at_minimum(steps=2, **{name: value})
