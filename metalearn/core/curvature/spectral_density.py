"""The spectral density of a symmetric matrix known by its products.

What is asked of an operator stands in `curvature.lanczos`.

Axes: P parameters (dimension of the matrix), K Lanczos iterations, V probes, G grid points.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.core.curvature.lanczos import check_iterations, lanczos_process
from metalearn.core.curvature.operators import Operator
from metalearn.core.curvature.symmetry import check_symmetric
from metalearn.core.precision import in_float32
from metalearn.core.tree import check_floating
from metalearn.errors import check_whole
from metalearn.signatures import checked

__all__ = ["SpectralDensity", "broadened", "spectral_density"]


class SpectralDensity(NamedTuple):
    """The density of eigenvalues, 1/P · Σ_i δ(λ − λ_i), estimated."""

    grid: Tensor
    """λ ``[G]``."""
    density: Tensor
    """``[G]``, integrates to 1 over λ."""
    nodes: Tensor
    """Ritz values ``[V, K]``."""
    weights: Tensor
    """Their weights ``[V, K]``; each row sums to 1."""


@checked
def spectral_density(
    matvec: Operator,
    like: Any,
    *,
    iterations: int,
    generator: torch.Generator,
    probes: int = 1,
    points: int = 1024,
    grid: Tensor | None = None,
    width: float | None = None,
) -> SpectralDensity:
    """The density of eigenvalues by stochastic Lanczos quadrature, with Gaussians for points.

    1/V · Σ_v Σ_k w_vk·N(λ; θ_vk, width²), θ and w the Ritz values of K Lanczos steps from a random
    direction and the squared first entries of their eigenvectors. Without the Gaussians, moments
    up to 2K − 1 are those of the random directions, exactly.

    Args:
        matvec: A·v of a tree, A symmetric.
        like: a tree that gives shapes, type and device.
        iterations: K, at least 2.
        generator: of the directions.
        probes: V.
        points: G of a grid over all Ritz values and five widths beyond.
        grid: λ ``[G]``, instead.
        width: standard deviation of the Gaussians; by default the range of the Ritz values divided
            by (K − 1)·√(8·log 3), as in the source.

    Raises:
        SettingError: numbers out of range; an operator as for `lanczos`.

    Sources: Ubaru, Chen and Saad, "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature",
    2017; Papyan, "Traces of Class/Cross-Class Structure Pervade Deep Learning Spectra", JMLR 2020;
    Ghorbani, Krishnan and Xiao, "An Investigation into Neural Net Optimization via Hessian
    Eigenvalue Density", ICML 2019.
    """
    for name, value, least in (("iterations", iterations, 2), ("probes", probes, 1)):
        check_whole(name, value, least)
    check_whole("points", points, 2, 2**24)
    if width is not None:
        check_number("width", width, above=0, accepted="a number above 0 is needed")
    if grid is not None:
        check_floating(grid, "grid")
    check_iterations(iterations, like)
    check_symmetric(matvec, like)
    matvec, like = in_float32(matvec, like)
    runs = [lanczos_process(matvec, like, iterations, generator).ritz() for _ in range(probes)]
    nodes = torch.stack([values for values, _ in runs])
    weights = torch.stack([vectors[0].square() for _, vectors in runs])
    low, high = nodes.amin(), nodes.amax()
    if width is None:
        floor = torch.maximum(low.abs(), high.abs()) * 1e-6 + torch.finfo(low.dtype).tiny
        spread = (high - low) / ((iterations - 1) * math.sqrt(8 * math.log(3)))
        around = torch.maximum(spread, floor)
    else:
        around = torch.full_like(low, width)
    if grid is None:
        steps = torch.linspace(0, 1, points, dtype=nodes.dtype, device=nodes.device)
        grid = low - 5 * around + (high - low + 10 * around) * steps
    return SpectralDensity(grid, broadened(nodes, weights, grid, around), nodes, weights)


def broadened(nodes: Tensor, weights: Tensor, grid: Tensor, width: float | Tensor) -> Tensor:
    """1/V · Σ_v Σ_k w_vk·N(grid; nodes_vk, width²), ``[G]``, of nodes and weights ``[V, K]``."""
    away = (grid - nodes[..., None]) / width
    bumps = torch.exp(-0.5 * away.square()) / (width * math.sqrt(2 * math.pi))
    return (weights[..., None] * bumps).sum(1).mean(0)
