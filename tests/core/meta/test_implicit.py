"""The implicit method against the closed form of quadratic bowls and against finite differences."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from metalearn.core import Implicit, adam, meta_gradient, sgd
from metalearn.errors import SettingError
from metalearn.types import TaskBatch
from tests.support import oracles
from tests.support.oracles import assert_trees

engines = pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
D, TASKS = 3, 4


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=oracles.generator(seed), dtype=torch.float64)


def curvatures(seed: int) -> Tensor:
    """``[T, D, D]``, symmetric, eigenvalues between 0.5 and 2."""
    basis = torch.linalg.qr(noise(TASKS, D, D, seed=seed))[0]
    values = torch.linspace(0.5, 2, D, dtype=torch.float64)
    return basis @ torch.diag(values) @ basis.mT


class Bowls(NamedTuple):
    """L = ½(φ − c)ᵀA(φ − c) with A and c of support and query."""

    a: Tensor
    s: Tensor
    a_query: Tensor
    q: Tensor

    @property
    def tasks(self) -> TaskBatch:
        return TaskBatch((self.a, self.s), (self.a_query, self.q))


BOWLS = Bowls(curvatures(1), noise(TASKS, D, seed=2), curvatures(3), noise(TASKS, D, seed=4))
THETA = noise(D, seed=5)
EYE = torch.eye(D, dtype=torch.float64)


def bowl(params: Tensor, batch: Any) -> Tensor:
    away = params - batch[1]
    return 0.5 * away @ batch[0] @ away


def solve(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.linalg.solve(matrix, vector[..., None])[..., 0]


def apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def minimum(strength: float, theta: Tensor, centre: Tensor = BOWLS.s) -> Tensor:
    """φ* = (A + λI)⁻¹(As + λθ), for each task."""
    return solve(BOWLS.a + strength * EYE, apply(BOWLS.a, centre) + strength * theta)


def run(
    engine: str = "batched",
    steps: int = 60,
    strength: float = 1.0,
    iterations: int = D,
    **more: Any,
) -> Any:
    settings: dict[str, Any] = {
        "steps": steps, "method": "implicit", "engine": engine,
        "implicit": Implicit(strength, iterations), **more,
    }  # fmt: skip
    if "optimizer" not in settings:
        settings["optimizer"] = sgd(1 / (strength + 1.25))
    loss_fn, params = settings.pop("loss_fn", bowl), settings.pop("params", THETA)
    return meta_gradient(loss_fn, params, settings.pop("tasks", BOWLS.tasks), **settings)


@engines
@pytest.mark.parametrize("strength", [0.3, 1.0, 7.0])
def test_quadratic_bowls(engine: str, strength: float) -> None:
    """The gradient is (I + A/λ)⁻¹·A_q·(φ* − q); D iterations solve for D unknowns."""
    end = minimum(strength, THETA)
    slope = apply(BOWLS.a_query, end - BOWLS.q)
    result = run(engine, steps=120, strength=strength)
    expected = solve(EYE + BOWLS.a / strength, slope)
    torch.testing.assert_close(result.grads, expected.mean(0), rtol=1e-10, atol=1e-10)
    losses = 0.5 * ((end - BOWLS.q) * slope).sum(-1)
    torch.testing.assert_close(result.query_losses, losses, rtol=1e-10, atol=1e-10)
    assert result.support_losses.shape == (TASKS, 120)
    assert float(result.diagnostics["cg_residual"].max()) < 1e-10
    assert float(result.diagnostics["stationarity"].max()) < 1e-10
    assert not result.grads.requires_grad


@engines
def test_damping_is_a_stronger_pull_in_the_system_alone(engine: str) -> None:
    """(I + A/(λ + δ))⁻¹·A_q·(φ* − q) at the minimum for λ; frozen leaves have λ + δ too."""
    slope = apply(BOWLS.a_query, minimum(1.0, THETA) - BOWLS.q)
    result = run(engine, steps=120, implicit=Implicit(1.0, D, 3.0))
    expected = solve(EYE + BOWLS.a / 4.0, slope)
    torch.testing.assert_close(result.grads, expected.mean(0), rtol=1e-10, atol=1e-10)
    assert float(result.diagnostics["cg_residual"].max()) < 1e-10


@engines
def test_damping_makes_a_system_definite(engine: str) -> None:
    """Of a saddle, H + λI indefinite: solved with δ above the least eigenvalue, not without."""
    hills = TaskBatch((BOWLS.a - 2.5 * EYE, BOWLS.s), (BOWLS.a_query, BOWLS.q))
    few: dict[str, Any] = {"tasks": hills, "steps": 1, "optimizer": sgd(1e-3)}
    plain = run(engine, implicit=Implicit(1.0, D), **few)
    damped = run(engine, implicit=Implicit(1.0, D, 6.0), **few)
    assert float(plain.diagnostics["cg_residual"].max()) > 0.1
    assert float(damped.diagnostics["cg_residual"].max()) < 1e-8


@engines
def test_the_gradient_is_that_of_the_minimum(engine: str) -> None:
    """d/dθ of L_query(φ*(θ)), by differentiating the closed form."""
    theta = THETA.clone().requires_grad_()
    away = minimum(2.0, theta) - BOWLS.q
    loss = 0.5 * (away * apply(BOWLS.a_query, away)).sum(-1).mean()
    (expected,) = torch.autograd.grad(loss, theta)
    torch.testing.assert_close(run(engine, strength=2.0).grads, expected)


@engines
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_any_inner_optimiser_that_comes_to_the_minimum(engine: str, name: str) -> None:
    optimizer = sgd(0.2, momentum=0.5) if name == "sgd" else adam(0.6, betas=(0.5, 0.9), eps=1.0)
    slope = apply(BOWLS.a_query, minimum(1.0, THETA) - BOWLS.q)
    expected = solve(EYE + BOWLS.a, slope).mean(0)
    result = run(engine, steps=80 if name == "sgd" else 150, optimizer=optimizer)
    torch.testing.assert_close(result.grads, expected, rtol=1e-5, atol=1e-5)


@engines
def test_frozen_leaves_have_the_gradient_through_the_minimum(engine: str) -> None:
    """L = ½(φ − s − Bψ)ᵀA(φ − s − Bψ), ψ frozen: φ* = (A + λI)⁻¹(A(s + Bψ) + λθ).

    With b = A_q(φ* − q − Bψ) and (I + A/λ)x = b the gradients are x for θ, −Bᵀb + BᵀA·x/λ for ψ.
    """
    strength, b = 1.5, noise(D, 2, seed=6)
    params = {"phi": THETA, "psi": noise(2, seed=7)}

    def loss_fn(p: Any, batch: Any) -> Tensor:
        return bowl(p["phi"] - b @ p["psi"], batch)

    shift = b @ params["psi"]
    end = minimum(strength, THETA, BOWLS.s + shift)
    slope = apply(BOWLS.a_query, end - BOWLS.q - shift)
    x = solve(EYE + BOWLS.a / strength, slope)
    psi = apply(b.mT, apply(BOWLS.a, x) / strength - slope)
    result = run(engine, strength=strength, loss_fn=loss_fn, params=params, frozen="psi")
    assert_trees(result.grads, {"phi": x.mean(0), "psi": psi.mean(0)})


@cache
def at_the_minimum(strength: float, lr: float, steps: int) -> oracles.Tree:
    """Finite differences of the query loss after descent on L + λ/2·‖φ − θ‖²."""

    def rule(values: list[Tensor], grads: list[Tensor], memory: dict[str, Any]) -> list[Tensor]:
        anchor = memory.setdefault("anchor", values)
        return [v - lr * (g + strength * (v - a)) for v, g, a in zip(values, grads, anchor)]

    case = oracles.classification(oracles.mlp(), (2,))
    return oracles.finite_difference_maml(case, rule, steps)


@engines
def test_networks_equal_finite_differences_at_the_minimum(engine: str) -> None:
    result = meta_gradient(
        *oracles.classification(oracles.mlp(), (2,)), optimizer=sgd(0.22), steps=20,
        method="implicit", engine=engine, implicit=Implicit(4.0, 20),
    )  # fmt: skip
    assert_trees(result.grads, at_the_minimum(4.0, 0.22, 20), 1e-7)


@pytest.mark.parametrize("frozen", [None, "0.*", "4.*"])
def test_engines_agree_on_networks_far_from_the_minimum(frozen: str | None) -> None:
    case = oracles.classification(oracles.conv(), (1, 4, 4), tasks=3)
    results = [
        meta_gradient(
            *case, optimizer=sgd(0.1), steps=2, method="implicit", engine=engine,
            implicit=Implicit(2.0, 3), chunk_size=chunk, frozen=frozen,
        )
        for engine, chunk in (("loop", None), ("batched", None), ("vmap", None), ("batched", 2))
    ]  # fmt: skip
    for other in results[1:]:
        assert_trees(other.grads, results[0].grads)
        for name in ("cg_residual", "stationarity"):
            torch.testing.assert_close(other.diagnostics[name], results[0].diagnostics[name])
            assert other.diagnostics[name].shape == (3,)
    assert len(results) == 4 and float(results[0].diagnostics["stationarity"].min()) > 1e-3


# --- what the diagnostics say ------------------------------------------------------------------


@engines
def test_the_residual_shrinks_with_iterations(engine: str) -> None:
    found = [
        run(engine, strength=0.1, iterations=n, optimizer=sgd(0.7), steps=80).diagnostics
        for n in (1, 2, 3, 6)
    ]
    sizes = [float(d["cg_residual"].max()) for d in found]
    assert sizes[0] > sizes[1] > 1e-6 and sizes[2] < 1e-10 and sizes[3] < 1e-10
    for one in found[1:]:
        torch.testing.assert_close(one["stationarity"], found[0]["stationarity"])


@engines
def test_the_residual_is_that_of_the_system(engine: str) -> None:
    """After one iteration from 0, x = b·(b·b)/(b·Mb) with M = I + A/λ."""
    result = run(engine, strength=1.0, iterations=1)
    b, matrix = apply(BOWLS.a_query, minimum(1.0, THETA) - BOWLS.q), EYE + BOWLS.a
    x = b * ((b * b).sum(-1) / (b * apply(matrix, b)).sum(-1))[:, None]
    torch.testing.assert_close(result.grads, x.mean(0))
    residual = (apply(matrix, x) - b).norm(dim=-1) / b.norm(dim=-1)
    torch.testing.assert_close(result.diagnostics["cg_residual"], residual)


@engines
def test_stationarity_shrinks_with_steps(engine: str) -> None:
    """From exactly 1 before the first step, by the contraction of each step."""
    sizes = [run(engine, steps=k).diagnostics["stationarity"] for k in (0, 1, 3, 9, 27)]
    torch.testing.assert_close(sizes[0], torch.ones(TASKS, dtype=torch.float64))
    for before, after in pairwise(sizes):
        assert bool((after < 0.6 * before).all())
    rate = EYE - (BOWLS.a + EYE) / 2.25
    force = apply(BOWLS.a, THETA - BOWLS.s)
    after_one = apply(rate, force).norm(dim=-1) / force.norm(dim=-1)
    torch.testing.assert_close(sizes[1], after_one)


@engines
def test_the_limit_of_strong_regularisation_is_the_query_gradient(engine: str) -> None:
    """θ cannot move: x = A_q(θ − q), as with no inner steps."""
    expected = apply(BOWLS.a_query, THETA - BOWLS.q).mean(0)
    gaps = [float((run(engine, strength=s).grads - expected).abs().max()) for s in (1e2, 1e4, 1e6)]
    assert gaps[0] > 10 * gaps[1] > 100 * gaps[2] and gaps[2] < 1e-5


# --- settings ---------------------------------------------------------------------------------


def test_settings_by_default() -> None:
    case = oracles.classification(oracles.mlp(), (2,))
    settings: dict[str, Any] = {"optimizer": sgd(0.2), "steps": 3, "method": "implicit"}
    plain = meta_gradient(*case, **settings)
    stated = meta_gradient(*case, **settings, implicit=Implicit(1.0, 5))
    assert_trees(plain.grads, stated.grads, 0.0)
    assert meta_gradient(*case, optimizer=sgd(0.2), steps=3).diagnostics == {}


@engines
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strength": 0.0}, r"^regularization=0\.0: a finite number above 0 is needed$"),
        ({"strength": -1.0}, r"^regularization=-1\.0: a finite number above 0"),
        ({"strength": float("inf")}, r"^regularization=inf: a finite number above 0"),
        ({"strength": float("nan")}, r"^regularization=nan: a finite number above 0"),
        ({"iterations": 0}, r"^iterations=0: a whole number of at least 1 is needed$"),
        ({"iterations": 2.5}, r"^iterations=2\.5: a whole number of at least 1"),
        (
            {"frozen": "*", "loss_fn": lambda p, b: bowl(p["w"], b), "params": {"w": THETA}},
            r"^frozen='every parameter': method=implicit needs one that adapts$",
        ),
    ],
)
def test_bad_settings_are_refused(engine: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        run(engine, optimizer=sgd(0.1), **changes)


def test_settings_of_implicit_matter_to_no_other_method() -> None:
    case = oracles.classification(oracles.mlp(), (2,))
    plain, odd = (
        meta_gradient(*case, optimizer=sgd(0.2), steps=1, implicit=i)
        for i in (None, Implicit(0.0, 0))
    )
    assert_trees(odd.grads, plain.grads, 0.0)
