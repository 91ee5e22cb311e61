"""Eigenvalues, spectral density and trace of a symmetric matrix known by its products.

``matvec`` maps a tree like ``like`` to such a tree: an operator of `curvature.operators`, or
any other. Its symmetry is tested once, by two products more, and what is not symmetric, not
deterministic or not finite is refused (`curvature.symmetry`). Nothing else depends on values:
all of it works inside an outer vmap over members or tasks, where nothing is tested; random vectors
then follow its ``randomness`` (``"same"`` or ``"different"``).

Of trees with fewer than 32 bits products alone are taken in their type, all else in float32.

Axes: P parameters (dimension of the matrix), K Lanczos iterations, V probes, G grid points.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.core.curvature.operators import Operator
from metalearn.core.curvature.symmetry import check_symmetric
from metalearn.core.precision import in_float32, widened_tree
from metalearn.core.random_tensors import normal, signs
from metalearn.core.tree import check_floating, leaves, ravel
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked

__all__ = [
    "Lanczos",
    "SpectralDensity",
    "TopEigenvalues",
    "TraceEstimate",
    "broadened",
    "lanczos",
    "spectral_density",
    "top_eigenvalues",
    "trace_estimate",
]


class Lanczos(NamedTuple):
    """A·Qᵀ ≈ Qᵀ·T, with T tridiagonal: ``alphas`` on its diagonal, ``betas[:-1]`` beside it."""

    alphas: Tensor
    """[K]"""
    betas: Tensor
    """[K]; the last is the norm of what is left, from which residuals follow."""
    basis: Tensor
    """Q ``[K, P]``, orthonormal rows, in the order of `metalearn.core.tree.ravel`."""

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues of T ``[K]``, ascending, and eigenvectors, the columns of ``[K, K]``."""
        beside = self.betas[:-1]
        tridiagonal = self.alphas.diag() + beside.diag(1) + beside.diag(-1)
        values, vectors = torch.linalg.eigh(tridiagonal)
        return values, vectors


class TopEigenvalues(NamedTuple):
    """Ritz values and what is known of their error."""

    values: Tensor
    """[count], the outermost first."""
    residuals: Tensor
    """‖A·v − λ·v‖ ``[count]``: an eigenvalue is within this distance of λ."""
    vectors: Any
    """Unit eigenvectors v: a tree with leaves ``[count, ...]``."""


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


class TraceEstimate(NamedTuple):
    """An unbiased estimate."""

    trace: Tensor
    standard_error: Tensor
    """Of the estimate, from the spread of the probes."""


@checked
def lanczos(matvec: Operator, like: Any, *, iterations: int, generator: torch.Generator) -> Lanczos:
    """K steps of the Lanczos process with full reorthogonalisation, from a random direction.

    Where an invariant subspace is exhausted (β within rounding of 0), β is 0 and the process goes
    on from a new random direction that is orthogonal to the basis, so that multiple eigenvalues
    are found as well. Memory: K·P.

    Args:
        matvec: A·v of a tree, A symmetric.
        like: a tree that gives shapes, type and device.
        iterations: K, at most P.
        generator: of the starting direction.

    Raises:
        SettingError: K out of range; an operator that is not symmetric, deterministic or finite.

    Source: Golub and Van Loan, "Matrix Computations", 4th edition, chapter 10.
    """
    _check_iterations(iterations, like)
    check_symmetric(matvec, like)
    return _lanczos(*in_float32(matvec, like), iterations, generator)


def _check_iterations(iterations: int, like: Any) -> None:
    check_whole("iterations", iterations, 1)
    check_floating(like, "like")
    size = sum(leaf.numel() for leaf in leaves(like))
    if iterations > size:
        raise SettingError("iterations", iterations, f"at most P = {size} are possible")


def _lanczos(matvec: Operator, like: Any, iterations: int, generator: torch.Generator) -> Lanczos:
    flat, unravel = ravel(like)
    tolerance = 10 * torch.finfo(flat.dtype).eps
    basis = [_unit(normal(flat.shape, flat, generator))]
    alphas, betas = [], []
    size = flat.new_zeros(())
    for step in range(iterations):
        image = ravel(matvec(unravel(basis[-1])))[0]
        alphas.append(image @ basis[-1])
        known = torch.stack(basis)
        rest = _without(image, known)
        beta = rest.norm()
        size = torch.maximum(size, image.norm())
        exhausted = beta <= tolerance * size
        betas.append(torch.where(exhausted, 0, beta))
        if step + 1 < iterations:
            rest = _unit(torch.where(exhausted, normal(flat.shape, flat, generator), rest))
            basis.append(_unit(_without(_unit(_without(rest, known)), known)))
    return Lanczos(torch.stack(alphas), torch.stack(betas), torch.stack(basis))


@checked
def top_eigenvalues(
    matvec: Operator,
    like: Any,
    *,
    count: int,
    iterations: int,
    generator: torch.Generator,
    which: Literal["largest", "smallest"] = "largest",
) -> TopEigenvalues:
    """The outermost eigenvalues by Lanczos, with residuals and eigenvectors.

    Args:
        matvec: A·v of a tree, A symmetric.
        like: a tree that gives shapes, type and device.
        count: how many, at most K.
        iterations: K; some ten times ``count`` for Hessians of networks: see the residuals.
        generator: of the starting direction.
        which: end of the spectrum; ``"smallest"`` are the most negative.

    Raises:
        SettingError: numbers out of range, an unknown end; an operator as for `lanczos`.
    """
    if which not in ("largest", "smallest"):
        raise SettingError("which", which, "one of largest, smallest is needed")
    check_whole("count", count, 1)
    check_whole("iterations", iterations, count)
    process = lanczos(matvec, like, iterations=iterations, generator=generator)
    values, vectors = process.ritz()
    if which == "largest":
        values, vectors = values.flip(0), vectors.flip(1)
    values, vectors = values[:count], vectors[:, :count]
    residuals = (process.betas[-1] * vectors[-1]).abs()
    _, unravel = ravel(widened_tree(like))
    return TopEigenvalues(values, residuals, torch.vmap(unravel)(vectors.mT @ process.basis))


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
    _check_iterations(iterations, like)
    check_symmetric(matvec, like)
    matvec, like = in_float32(matvec, like)
    runs = [_lanczos(matvec, like, iterations, generator).ritz() for _ in range(probes)]
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


@checked
def trace_estimate(
    matvec: Operator,
    like: Any,
    *,
    products: int,
    generator: torch.Generator,
    method: Literal["hutchinson", "hutch++"] = "hutchinson",
) -> TraceEstimate:
    """Tr A from random products, with Rademacher probes z (entries ±1).

    ``"hutchinson"``: the mean of zᵀA·z. ``"hutch++"``: tr(QᵀA·Q) for an orthonormal basis Q of A·S
    with a third of the products as random directions S, and the mean of zᵀ(I−QQᵀ)A(I−QQᵀ)z for the
    rest; exact, its standard error 0, where the rank of A is at most that third.

    Args:
        matvec: A·v of a tree, A symmetric.
        like: a tree that gives shapes, type and device.
        products: how many with A beside the two of the test: at least 2, for Hutch++ at least 4.
        generator: of the probes.
        method: which.

    Raises:
        SettingError: an unknown method, too few products; an operator as for `lanczos`.

    Sources: Hutchinson, 1989; Meyer, Musco, Musco and Woodruff, "Hutch++: Optimal Stochastic Trace
    Estimation", SOSA 2021.
    """
    known = get_args(Literal["hutchinson", "hutch++"])
    if method not in known:
        raise SettingError("method", method, f"one of {', '.join(known)} is needed")
    check_whole("products", products, 2 if method == "hutchinson" else 4)
    check_symmetric(matvec, like)
    matvec, like = in_float32(matvec, like)
    flat, unravel = ravel(like)

    def times(vector: Tensor) -> Tensor:
        image: Tensor = ravel(matvec(unravel(vector)))[0]
        return image

    exact, basis, left = flat.new_zeros(()), flat.new_zeros((1, len(flat))), products
    if method == "hutch++":
        sketch = min(products // 3, len(flat))
        images = torch.stack([times(signs(flat.shape, flat, generator)) for _ in range(sketch)])
        basis = torch.linalg.qr(images.mT).Q.mT
        exact = torch.stack([row @ times(row) for row in basis]).sum()
        left = products - 2 * sketch
    probes = [_without(signs(flat.shape, flat, generator), basis) for _ in range(left)]
    values = torch.stack([probe @ times(probe) for probe in probes])
    return TraceEstimate(exact + values.mean(), values.std() / math.sqrt(left))


def _unit(vector: Tensor) -> Tensor:
    length: Tensor = vector.norm()
    return vector / length.clamp_min(torch.finfo(vector.dtype).tiny)


def _without(vector: Tensor, basis: Tensor) -> Tensor:
    """What is left of a vector ``[P]`` beside orthonormal rows."""
    return vector - basis.mT @ (basis @ vector)
