"""Curvature of a trained conv4 against curvlinops on the same data: errors and times.

Errors are against the eigenvalues of the whole Hessian in float64.
Axes: N samples, P parameters, K Lanczos iterations, V probes, G grid points, M members.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from metalearn.benchmarks.curvature_problem import (
    CurvatureProblem,
    eigenvalues,
    product_by_autograd,
)
from metalearn.benchmarks.spectrum_runs import (
    Runs,
    fresh,
    looped_runs,
    our_runs,
    their_operator,
    their_runs,
)
from metalearn.core import lanczos
from metalearn.core.curvature.spectral_density import broadened

__all__ = [
    "SpectrumCurve",
    "SpectrumRow",
    "spectrum_figure",
    "spectrum_race",
    "spectrum_table",
]

_SHIFT = 1e-5  # added to |λ| before its logarithm
_COLOURS = {"exact": "#8A8A8A", "metalearn": "#0072B2", "curvlinops": "#D55E00"}


@dataclass(frozen=True)
class SpectrumRow:
    """One quantity by one library."""

    quantity: str
    library: str
    seconds: float
    """Median over rounds; in each round the libraries take turns."""
    error: float
    """Relative, or total variation distance for a density; NaN where there is no reference."""


@dataclass(frozen=True)
class SpectrumCurve:
    """A density over log10(|λ| + 1e-5)."""

    library: str
    grid: Tensor
    """|λ| + 1e-5 ``[G]``."""
    density: Tensor
    """``[G]``"""


def spectrum_race(
    problem: CurvatureProblem,
    *,
    count: int = 5,
    iterations: int = 60,
    points: int = 512,
    members: int = 4,
    rounds: int = 3,
) -> tuple[list[SpectrumRow], list[SpectrumCurve]]:
    """Time a product, the top eigenvalues and a density of one probe, in float32.

    Args:
        problem: small enough for its whole Hessian (P of a few thousand).
        count: how many eigenvalues.
        iterations: K.
        points: G.
        members: M networks whose top eigenvalues are found at once and one after another.
        rounds: how often each is timed, after one run that is not.
    """
    exact = eigenvalues(problem)
    grid, width = _grid(exact, iterations, points)
    runs = {
        "metalearn": our_runs(problem, count, iterations, grid, width, members),
        "metalearn, loop": looped_runs(problem, count, iterations, members),
    }
    if importlib.util.find_spec("curvlinops") is not None:
        runs["curvlinops"] = their_runs(problem, count, iterations, exact, points)
    shares = torch.full_like(exact, 1 / len(exact))[None]
    truth = {
        "Hessian product": product_by_autograd(problem),
        f"top {count} eigenvalues": exact.flip(0)[:count],
        f"density, {iterations} steps": broadened(exact[None], shares, grid, width),
    }
    step = float(grid[1] - grid[0])
    seconds, found = _timed(runs, rounds)
    rows = []
    for (library, quantity), spent in seconds.items():
        error = math.nan
        if quantity in truth:
            gap = found[library, quantity].double() - truth[quantity]
            error = float(gap.norm() / truth[quantity].norm())
            error = 0.5 * step * float(gap.abs().sum()) if "density" in quantity else error
        rows.append(SpectrumRow(quantity, library, spent, error))
    return rows, _curves(problem, exact, iterations, points)


def spectrum_table(rows: list[SpectrumRow]) -> str:
    """A Markdown table."""
    lines = ["| | | ms | error |", "| --- | --- | --- | --- |"]
    for row in rows:
        error = "" if math.isnan(row.error) else f"{row.error:.0e}"
        lines.append(f"| {row.quantity} | {row.library} | {1e3 * row.seconds:.0f} | {error} |")
    return "\n".join(lines)


def spectrum_figure(title: str, curves: list[SpectrumCurve]) -> Figure:
    """Densities of log10|λ|, both axes logarithmic."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        axes.plot(
            curve.grid,
            curve.density.clamp_min(1e-12),
            color=_COLOURS[curve.library],
            label=curve.library,
        )
    axes.set(xscale="log", yscale="log", ylim=(1e-4, None))
    axes.set(xlabel="|λ| + 1e-5", ylabel="density of log10(|λ| + 1e-5)", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _timed(
    runs: dict[str, Runs], rounds: int
) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], Any]]:
    """Median seconds and results by library and quantity."""
    spent: dict[tuple[str, str], list[float]] = {}
    found: dict[tuple[str, str], Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for quantity in runs["metalearn"]:
            for _ in range(rounds + 1):
                for library in [name for name in runs if quantity in runs[name]]:
                    start = time.perf_counter()
                    found[library, quantity] = runs[library][quantity]()
                    elapsed = time.perf_counter() - start
                    spent.setdefault((library, quantity), []).append(elapsed)
    return {key: statistics.median(values[1:]) for key, values in spent.items()}, found


def _grid(exact: Tensor, iterations: int, points: int) -> tuple[Tensor, float]:
    """Grid and width that curvlinops takes for the same ends of the spectrum."""
    low, high = float(exact[0]), float(exact[-1])
    margin = 0.05 * (high - low)
    grid = torch.linspace(low - margin, high + margin, points, dtype=torch.float64)
    half = 0.5 * (high - low) + margin
    return grid, half * 2 / (iterations - 1) / math.sqrt(8 * math.log(3))


def _curves(
    problem: CurvatureProblem, exact: Tensor, iterations: int, points: int
) -> list[SpectrumCurve]:
    """Densities of log10(|λ| + shift), Gaussians of a tenth of a decade, one probe."""
    ends = math.log10(_SHIFT) - 0.5, math.log10(float(exact.abs().max())) + 0.5
    logs = torch.linspace(*ends, points, dtype=torch.float64)
    quadratures = {"exact": (exact, torch.full_like(exact, 1 / len(exact)))}
    params = problem.params(torch.float32)
    process = lanczos(problem.operator(params), params, iterations=iterations, generator=fresh())
    runs = {"metalearn": process.ritz}
    if importlib.util.find_spec("curvlinops") is not None:
        from curvlinops.papyan2020traces.spectrum import fast_lanczos

        runs["curvlinops"] = partial(fast_lanczos, their_operator(problem), iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for library, run in runs.items():
            nodes, vectors = run()
            quadratures[library] = nodes.double(), vectors[0].square().double()
    return [
        SpectrumCurve(
            library,
            10**logs,
            broadened((nodes.abs() + _SHIFT).log10()[None], weights[None], logs, 0.1),
        )
        for library, (nodes, weights) in quadratures.items()
    ]
