"""Who takes the gradient at a minimum: logistic regression with a penalty, R losses after it.

Axes: K steps, N examples, R outer losses, P parameters.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, hessian, jacrev

from metalearn.benchmarks.runs.betty_problems import betty_gradient
from metalearn.benchmarks.runs.entrants import Entrant, Race
from metalearn.benchmarks.runs.hypergradients import BETTY, TORCHOPT, our_gradient
from metalearn.benchmarks.runs.weighted_run import WeightedRun, digits
from metalearn.core import ImplicitSolver

__all__ = ["IMPLICIT", "ImplicitProblem"]

_ITERATIONS = 30  # of conjugate gradients
_MEAN_OF = 100  # samples in a single outer loss
_TERMS = 300  # of a Neumann series, until they are about as near
_NEWTON = 8  # steps to the minimum


@dataclass(frozen=True)
class ImplicitProblem:
    """Descent to the minimum of a strongly convex loss, and the gradient there."""

    losses: int = 1
    steps: int = 150
    examples: int = 1000

    def run(self) -> WeightedRun:
        """The same at every call; every step sees all examples."""
        x, y, at, labels = digits()
        count = _MEAN_OF if self.losses == 1 else self.losses
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        for parameter in network.parameters():
            nn.init.zeros_(parameter)
        return WeightedRun(
            network, (x[: self.examples], y[: self.examples]),
            (torch.arange(self.examples),) * self.steps, (0.2,) * self.steps,
            (at[:count], labels[:count]), momentum=0.8, decay=0.1, mean=self.losses == 1,
        )  # fmt: skip


def solved(run: WeightedRun) -> Callable[[], Tensor]:
    """The dense solution ``[R, N]`` in float64, at a minimum found by Newton's method."""
    run = run.to(torch.float64)

    def gradient() -> Tensor:
        weights, rows, params = run.weights, run.rows[0], run.params
        sizes = [p.numel() for p in params.values()]

        def tree(flat: Tensor) -> dict[str, Tensor]:
            parts = zip(params, torch.split(flat, sizes))
            return {name: part.view_as(params[name]) for name, part in parts}

        def loss(flat: Tensor, weights: Tensor) -> Tensor:
            return run.batch_loss(tree(flat), weights, rows)

        flat = torch.cat([p.flatten() for p in params.values()])
        for _ in range(_NEWTON):
            step = torch.linalg.solve(hessian(loss)(flat, weights), grad(loss)(flat, weights))
            flat = flat - step
        slopes = jacrev(lambda flat: run.outer(tree(flat)).reshape(-1))(flat)
        moved = torch.linalg.solve(hessian(loss)(flat, weights), slopes.T)
        mixed = jacrev(grad(loss), argnums=1)(flat, weights)
        found: Tensor = -moved.T @ mixed
        return found

    return gradient


def torchopt(run: WeightedRun) -> Callable[[], Tensor]:
    """``torchopt.diff.implicit.custom_root``; a system is solved for each outer loss."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library: Any = importlib.import_module("torchopt")
    names = list(run.params)

    def slopes(params: tuple[Tensor, ...], weights: Tensor) -> tuple[Tensor, ...]:
        found = grad(lambda p: run.batch_loss(dict(zip(names, p)), weights, run.rows[0]))(params)
        return tuple(found)

    how = library.linear_solve.solve_cg(maxiter=_ITERATIONS)

    @library.diff.implicit.custom_root(slopes, argnums=1, solve=how)  # type: ignore[untyped-decorator]
    def minimum(params: tuple[Tensor, ...], weights: Tensor) -> tuple[Tensor, ...]:
        speeds = tuple(torch.zeros_like(p) for p in params)
        for rate in run.rates:
            pairs = zip(speeds, slopes(params, weights))
            speeds = tuple(run.momentum * v + g for v, g in pairs)
            params = tuple(p - rate * v for p, v in zip(params, speeds))
        return params

    def gradient() -> Tensor:
        weights = run.weights.requires_grad_()
        params = minimum(tuple(run.params.values()), weights)
        rows = run.outer(dict(zip(names, params))).reshape(-1)
        found = [torch.autograd.grad(row, weights, retain_graph=True)[0] for row in rows]
        return torch.stack(found)

    return gradient


def ours(run: WeightedRun) -> Callable[[], Tensor]:
    """``method="implicit"``: R systems at once."""
    solver = ImplicitSolver(iterations=_ITERATIONS, batch=run.rows[0])
    return our_gradient(run, method="implicit", implicit=solver)


def betty(run: WeightedRun, **how: Any) -> Callable[[], Tensor]:
    """An ``ImplicitProblem`` of betty."""
    return betty_gradient(run, "ImplicitProblem", {}, how)


def _one(problem: ImplicitProblem) -> bool:
    return problem.losses == 1


def _entrant(title: str, gradient: Callable[..., Any], **how: Any) -> Entrant:
    return Entrant(title, lambda problem: gradient(problem.run()), "implicit", **how)


_BETTY: dict[str, Any] = {"needs": BETTY, "takes": _one, "limit": "it has one outer loss"}

IMPLICIT = Race(
    ImplicitProblem,
    {
        "implicit": _entrant("ours, implicit", ours),
        "mixed": _entrant("ours, mixed, through the run", our_gradient),
        "torchopt": _entrant("TorchOpt, custom_root", torchopt, needs=TORCHOPT),
        "betty_cg": _entrant(
            "betty, conjugate gradients",
            lambda run: betty(run, type="cg", cg_iterations=_ITERATIONS), **_BETTY,
        ),
        "betty_neumann": _entrant(
            "betty, Neumann series",
            lambda run: betty(run, type="neumann", neumann_iterations=_TERMS, neumann_alpha=0.2),
            **_BETTY,
        ),
        "reference": _entrant("dense, float64", solved, timed=False),
    },
    {"steps": 2, "examples": 10},
)  # fmt: skip
