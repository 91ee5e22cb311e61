"""What is timed: products, eigenvalues and densities of a Hessian, by this library and another.

Axes: P parameters, K Lanczos iterations, G grid points, M members.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.benchmarks.curvature_problem import CurvatureProblem
from metalearn.core import spectral_density, top_eigenvalues, tree

__all__ = ["Runs", "fresh", "looped_runs", "our_runs", "their_operator", "their_runs"]

Runs = dict[str, Callable[[], Any]]


def our_runs(
    problem: CurvatureProblem,
    count: int,
    iterations: int,
    grid: Tensor,
    width: float,
    members: int,
) -> Runs:
    """A product, top eigenvalues of one network and of M at once, and a density."""
    params = problem.params(torch.float32)
    operator, unravel = problem.operator(params), tree.ravel(params)[1]
    vector = unravel(problem.direction(torch.float32))
    stack = _members(params, members)

    def top(params: dict[str, Tensor]) -> Tensor:
        return _top(problem, params, count, iterations)

    return {
        "Hessian product": lambda: tree.ravel(operator(vector))[0],
        f"top {count} eigenvalues": lambda: top(params),
        f"density, {iterations} steps": lambda: (
            spectral_density(
                operator, params, iterations=iterations, generator=fresh(), grid=grid.float(),
                width=width,
            ).density
        ),
        f"top {count} eigenvalues of {members} members": lambda: torch.vmap(
            top, randomness="same"
        )(stack),
    }  # fmt: skip


def looped_runs(problem: CurvatureProblem, count: int, iterations: int, members: int) -> Runs:
    """Top eigenvalues of M networks, one after another."""
    stack = _members(problem.params(torch.float32), members)
    alone = [tree.tree_map(lambda v, m=m: v[m], stack) for m in range(members)]
    name = f"top {count} eigenvalues of {members} members"
    return {name: lambda: torch.stack([_top(problem, one, count, iterations) for one in alone])}


def their_runs(
    problem: CurvatureProblem, count: int, iterations: int, exact: Tensor, points: int
) -> Runs:
    """A product, top eigenvalues and a density by curvlinops, told the ends of the spectrum."""
    from curvlinops.papyan2020traces.spectrum import lanczos_approximate_spectrum
    from scipy.sparse.linalg import eigsh

    operator = their_operator(problem)
    vector = problem.direction(torch.float32)
    ends = (float(exact[0]), float(exact[-1]))

    def top() -> Tensor:
        values = eigsh(operator.to_scipy(), k=count, which="LA", return_eigenvectors=False)
        return torch.as_tensor(values).sort(descending=True).values

    def density() -> Tensor:
        torch.manual_seed(0)
        found = lanczos_approximate_spectrum(operator, iterations, points, boundaries=ends)
        return torch.as_tensor(found[1])

    return {
        "Hessian product": lambda: operator @ vector,
        f"top {count} eigenvalues": top,
        f"density, {iterations} steps": density,
    }


def their_operator(problem: CurvatureProblem) -> Any:
    """Curvlinops' Hessian."""
    from curvlinops import HessianLinearOperator

    params = [p for p in problem.module.parameters() if p.requires_grad]
    batches = [(problem.inputs, problem.targets)]
    return HessianLinearOperator(
        problem.module, nn.CrossEntropyLoss(), params, batches, check_deterministic=False
    )


def _top(
    problem: CurvatureProblem, params: dict[str, Tensor], count: int, iterations: int
) -> Tensor:
    operator = problem.operator(params)
    return top_eigenvalues(
        operator, params, count=count, iterations=iterations, generator=fresh()
    ).values


def _members(params: dict[str, Tensor], members: int) -> dict[str, Tensor]:
    """The network and others near it, stacked."""
    source = fresh()

    def spread(value: Tensor) -> Tensor:
        noise = torch.randn((members, *value.shape), generator=source)
        return value * (1 + 0.1 * noise)

    return {name: spread(value) for name, value in params.items()}


def fresh() -> torch.Generator:
    """The same draws at every call."""
    return torch.Generator().manual_seed(0)
