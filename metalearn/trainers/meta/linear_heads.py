"""Linear classifiers of the features of one support set, at the optimum, with their derivatives.

Axes: N samples, C classes, D features, R = min(N, D).
"""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.trainers.meta.absent_classes import among_present

__all__ = ["logistic_weights", "ridge_weights"]

NEWTON_STEPS = 20
_LENGTHS = tuple(0.5**k for k in range(10))


def ridge_weights(features: Tensor, targets: Tensor, ridge: Tensor) -> Tensor:
    """W ``[D, C]`` of the least ‖X W − Y‖² + λ‖W‖², by a system of the smaller size R.

    Xᵀ (X Xᵀ + λI)⁻¹ Y, or (Xᵀ X + λI)⁻¹ Xᵀ Y where there are more samples than features (Woodbury's
    identity), by Cholesky factors. λ is held above what rounding makes of the matrix. Rows of Y
    that are zero (padding) count nowhere. A matrix that is not finite gives what is not finite.

    Args:
        features: X ``[N, D]``.
        targets: Y ``[N, C]``.
        ridge: λ, a positive scalar.
    """
    x = _without_padding(features, targets)
    wide = x.shape[0] <= x.shape[1]
    gram = x @ x.mT if wide else x.mT @ x
    rounding = torch.finfo(gram.dtype).eps * gram.diagonal().sum().detach()
    system = gram + (ridge + rounding) * torch.eye(len(gram), dtype=x.dtype, device=x.device)
    factor, _ = torch.linalg.cholesky_ex(system)
    known = targets if wide else x.mT @ targets
    half = torch.linalg.solve_triangular(factor, known, upper=False)
    solved = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    weights: Tensor = x.mT @ solved if wide else solved
    return weights


def logistic_weights(features: Tensor, targets: Tensor, ridge: Tensor) -> Tensor:
    """W ``[D, C]`` of the least Σ_n H(y_n, softmax(x_n W)) + λ/2 ‖W‖², H the cross-entropy.

    By Newton's method (iteratively reweighted least squares) with a search along each step, on
    constants: a fixed number of steps, and of unknowns C·R. The derivative is that of the optimum:
    one further Newton step U − J⁻¹ g(U), of which g alone is differentiated, has the derivative
    −J⁻¹ ∂g of the implicit function theorem, whose reverse is a solve with Jᵀ. It is exact to first
    order; further derivatives are not those of the optimum. Rows of Y that are zero (padding) count
    nowhere, nor do columns (absent classes), whose weights are 0.

    Args:
        features: X ``[N, D]``.
        targets: Y ``[N, C]``, rows that add up to 1.
        ridge: λ, a positive scalar.
    """
    x = _without_padding(features, targets)
    wide = x.shape[0] <= x.shape[1]  # W = Xᵀ U, else W = U
    fixed, rate = x.detach(), ridge.detach()
    design, left = _design(fixed, wide)
    unknown = torch.zeros_like(left.mT @ targets)
    for _ in range(NEWTON_STEPS):
        step = _newton_step(unknown, design, left, targets, rate)
        unknown = _best_along(unknown, step, design, targets, rate, wide)
    jacobian = _jacobian(unknown, design, left, targets, rate)
    residual = _residual(unknown, *_design(x, wide), targets, ridge)
    unknown = unknown - _solved(jacobian, residual)
    return x.mT @ unknown if wide else unknown


def _without_padding(features: Tensor, targets: Tensor) -> Tensor:
    """Features ``[N, D]``, zero where a row of targets is."""
    return features * (targets.detach().sum(-1, keepdim=True) != 0)


def _design(x: Tensor, wide: bool) -> tuple[Tensor, Tensor]:
    """B ``[N, R]`` with logits B U, and M ``[N, R]`` with g(U) = λU + Mᵀ(softmax(B U) − Y)."""
    if not wide:
        return x, x
    return x @ x.mT, torch.eye(len(x), dtype=x.dtype, device=x.device)


def _residual(
    unknown: Tensor, design: Tensor, left: Tensor, targets: Tensor, ridge: Tensor
) -> Tensor:
    """g(U) ``[R, C]``, zero at the optimum; in the wide form the slope of the loss is X Xᵀ g."""
    p = among_present(design @ unknown, targets).softmax(-1)
    return ridge * unknown + left.mT @ (p - targets)


def _jacobian(
    unknown: Tensor, design: Tensor, left: Tensor, targets: Tensor, ridge: Tensor
) -> Tensor:
    """∂g/∂U ``[R·C, R·C]``."""
    p = among_present(design @ unknown, targets).softmax(-1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]  # [N, C, C]
    weighted = torch.einsum("nm,ncd,nb->mcbd", left, curvature, design)
    matrix = weighted.reshape(unknown.numel(), unknown.numel())
    return matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def _newton_step(
    unknown: Tensor, design: Tensor, left: Tensor, targets: Tensor, ridge: Tensor
) -> Tensor:
    """−J⁻¹ g ``[R, C]``."""
    residual = _residual(unknown, design, left, targets, ridge)
    return -_solved(_jacobian(unknown, design, left, targets, ridge), residual)


def _solved(matrix: Tensor, residual: Tensor) -> Tensor:
    """Matrix⁻¹ residual, in the shape of the residual ``[R, C]``."""
    flat, _ = torch.linalg.solve_ex(matrix, residual.reshape(-1, 1))
    found: Tensor = flat.reshape(residual.shape)
    return found


def _best_along(
    unknown: Tensor, step: Tensor, design: Tensor, targets: Tensor, ridge: Tensor, wide: bool
) -> Tensor:
    """The best of U + t·step, t = 1, 1/2, 1/4, …."""
    trials = torch.stack([unknown + length * step for length in _LENGTHS])
    logits = design @ trials
    square = trials * (logits if wide else trials)  # ‖W‖² = ⟨U, X Xᵀ U⟩ or ⟨U, U⟩
    logits = among_present(logits, targets)
    loss = -(targets * logits.log_softmax(-1)).sum((-2, -1)) + ridge / 2 * square.sum((-2, -1))
    chosen: Tensor = trials[0]
    least = loss[0]
    for trial, value in zip(trials[1:], loss[1:]):
        chosen, least = torch.where(value < least, trial, chosen), torch.minimum(value, least)
    return chosen
