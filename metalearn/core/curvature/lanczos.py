"""Eigenvalues of a symmetric matrix known by its products, by the Lanczos process.

``matvec`` maps a tree like ``like`` to such a tree: an operator of `curvature.operators`, or
any other. Its symmetry is tested once, by two products more, and what is not symmetric, not
deterministic or not finite is refused (`curvature.symmetry`). Nothing else depends on values:
all of it works inside an outer vmap over members or tasks, where nothing is tested; random vectors
then follow its ``randomness`` (``"same"`` or ``"different"``).

Of trees with fewer than 32 bits products alone are taken in their type, all else in float32.

Axes: P parameters (dimension of the matrix), K Lanczos iterations.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metalearn.core.curvature.operators import Operator
from metalearn.core.curvature.symmetry import check_symmetric
from metalearn.core.precision import in_float32, widened_tree
from metalearn.core.random_tensors import normal
from metalearn.core.tree import check_floating, leaves, ravel
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked

__all__ = [
    "Lanczos",
    "TopEigenvalues",
    "check_iterations",
    "lanczos",
    "lanczos_process",
    "orthogonal_part",
    "top_eigenvalues",
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
    check_iterations(iterations, like)
    check_symmetric(matvec, like)
    return lanczos_process(*in_float32(matvec, like), iterations, generator)


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


def check_iterations(iterations: int, like: Any) -> None:
    """Refuse K beyond the dimension P of ``like``."""
    check_whole("iterations", iterations, 1)
    check_floating(like, "like")
    size = sum(leaf.numel() for leaf in leaves(like))
    if iterations > size:
        raise SettingError("iterations", iterations, f"at most P = {size} are possible")


def lanczos_process(
    matvec: Operator, like: Any, iterations: int, generator: torch.Generator
) -> Lanczos:
    """`lanczos` of arguments that are checked."""
    flat, unravel = ravel(like)
    tolerance = 10 * torch.finfo(flat.dtype).eps
    basis = [_unit(normal(flat.shape, flat, generator))]
    alphas, betas = [], []
    size = flat.new_zeros(())
    for step in range(iterations):
        image = ravel(matvec(unravel(basis[-1])))[0]
        alphas.append(image @ basis[-1])
        known = torch.stack(basis)
        rest = orthogonal_part(image, known)
        beta = rest.norm()
        size = torch.maximum(size, image.norm())
        exhausted = beta <= tolerance * size
        betas.append(torch.where(exhausted, 0, beta))
        if step + 1 < iterations:
            rest = _unit(torch.where(exhausted, normal(flat.shape, flat, generator), rest))
            basis.append(_unit(orthogonal_part(_unit(orthogonal_part(rest, known)), known)))
    return Lanczos(torch.stack(alphas), torch.stack(betas), torch.stack(basis))


def orthogonal_part(vector: Tensor, basis: Tensor) -> Tensor:
    """What is left of a vector ``[P]`` beside orthonormal rows."""
    return vector - basis.mT @ (basis @ vector)


def _unit(vector: Tensor) -> Tensor:
    length: Tensor = vector.norm()
    return vector / length.clamp_min(torch.finfo(vector.dtype).tiny)
