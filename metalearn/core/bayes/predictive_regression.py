"""The same for ensembles of regression models: their mixture, its variance split in two, its NLL.

Axes: M members first, D outputs last, any batch axes between them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metalearn.core.bayes.predictive import Uncertainty
from metalearn.errors import SettingError

__all__ = ["gaussian_log_densities", "gaussian_mixture_nll", "regression_uncertainty"]


def regression_uncertainty(means: Tensor, variances: Tensor | None = None) -> Uncertainty:
    """Variance of the mixture of members, split by the law of total variance.

    Aleatoric: ``(1/M) Σ_m σ²_m``; epistemic: ``(1/M) Σ_m (μ_m − μ̄)²`` with ``μ̄ = means.mean(0)``,
    the ensemble's prediction (Lakshminarayanan et al., NeurIPS 2017, arXiv 1612.01474).

    Args:
        means: ``[M, ..., D]``.
        variances: the members' own, of the same shape; None for members that predict means alone,
            whose aleatoric part is 0.

    Returns:
        Total, aleatoric and epistemic variance, each ``[..., D]``, in squared units of the target.

    Raises:
        SettingError: no member, or shapes that differ.
    """
    _check_regression(means, variances)
    epistemic = (means - means.mean(0)).square().mean(0)
    aleatoric = torch.zeros_like(epistemic) if variances is None else variances.mean(0)
    return Uncertainty(aleatoric + epistemic, aleatoric, epistemic)


def gaussian_mixture_nll(means: Tensor, variances: Tensor, targets: Tensor) -> Tensor:
    """``−log (1/M) Σ_m Π_d N(y_d; μ_md, σ²_md)`` of each sample, in nats.

    Args:
        means: ``[M, ..., D]``.
        variances: of the same shape, above 0.
        targets: ``[..., D]``.

    Returns:
        ``[...]``; its mean over samples is the NLL of the mixture.

    Raises:
        SettingError: no member, or shapes that differ.
    """
    log_p = gaussian_log_densities(means, variances, targets)
    return math.log(means.shape[0]) - log_p.logsumexp(0)


def gaussian_log_densities(means: Tensor, variances: Tensor, targets: Tensor) -> Tensor:
    """``log Π_d N(y_d; μ_md, σ²_md)`` of each member and sample, ``[M, ...]``, in nats.

    Arguments and errors as of `gaussian_mixture_nll`.
    """
    _check_regression(means, variances)
    if targets.shape != means.shape[1:]:
        accepted = f"{list(means.shape[1:])} is needed, as the means have it after the member axis"
        raise SettingError("shape of targets", list(targets.shape), accepted)
    surprise = (targets - means).square() / variances + variances.log() + math.log(2 * math.pi)
    return -0.5 * surprise.sum(-1)


def _check_regression(means: Tensor, variances: Tensor | None) -> None:
    if means.ndim < 2 or not means.shape[0]:
        accepted = "[M, ..., D] with at least one member is needed"
        raise SettingError("shape of means", list(means.shape), accepted)
    if variances is not None and variances.shape != means.shape:
        accepted = f"{list(means.shape)} is needed, the shape of the means"
        raise SettingError("shape of variances", list(variances.shape), accepted)
