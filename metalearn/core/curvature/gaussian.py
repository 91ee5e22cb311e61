"""Normal distributions whose means and variances are both outputs of a network.

Outputs are means μ ``[..., D]`` and, after them, s ``[..., D]``, the logarithms of variances:

σ² = e^s + 10⁻⁶.

The floor keeps the loss of a network that fits its targets exactly from falling without end, and is
smooth, so that derivatives of any order are right; log σ² is computed without forming e^s, so that
no s overflows.

Axes: D targets of a sample.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metalearn.errors import SettingError

__all__ = [
    "gaussian_nll",
    "gaussian_nll_of_samples",
    "means_and_log_variances",
    "output_factor",
    "output_score",
]

_LOG_FLOOR = math.log(1e-6)


def means_and_log_variances(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """μ and log σ² ``[..., D]`` of outputs ``[..., 2·D]``.

    Raises:
        SettingError: an odd number of outputs.
    """
    if outputs.shape[-1] % 2:
        accepted = "an even number is needed, means and as many log-variances"
        raise SettingError("width of outputs", outputs.shape[-1], accepted)
    means, logs = outputs.chunk(2, -1)
    return means, torch.logaddexp(logs, logs.new_full((), _LOG_FLOOR))


def gaussian_nll(outputs: Tensor, targets: Tensor) -> Tensor:
    """(1/B)·Σ_b Σ_d ½·((y − μ)²/σ² + log σ² + log 2π), a scalar in nats.

    Args:
        outputs: ``[..., B, 2·D]``; the mean is over further axes too.
        targets: y, ``[B, D]``.
    """
    return gaussian_nll_of_samples(outputs, targets).mean()


def gaussian_nll_of_samples(outputs: Tensor, targets: Tensor) -> Tensor:
    """Σ_d ½·((y − μ)²/σ² + log σ² + log 2π) of each sample, ``[..., B]``, in nats.

    Args:
        outputs: ``[..., B, 2·D]``.
        targets: y, ``[B, D]``.

    Source: Nix and Weigend, "Estimating the Mean and Variance of the Target Probability
    Distribution", ICNN 1994. The floor of the variance is that of Lakshminarayanan et al., "Simple
    and Scalable Predictive Uncertainty Estimation using Deep Ensembles", NeurIPS 2017.
    """
    means, logs = means_and_log_variances(outputs)
    terms = (targets - means).square() * (-logs).exp() + logs + math.log(2 * math.pi)
    return 0.5 * terms.sum(-1)


def output_score(outputs: Tensor, target: Tensor) -> Tensor:
    """∇_f −log N(y; μ, σ²) of one sample, ``[2·D]``, for a target ``[D]``."""
    means, logs = means_and_log_variances(outputs)
    residual = (means - target) * (-logs).exp()
    return torch.cat([residual, 0.5 * (1 - residual * (means - target)) * _slope(outputs, logs)])


def output_factor(outputs: Tensor) -> Tensor:
    """Diagonal of the root of E_y[∇ log p ∇ log pᵀ], ``[2·D]``: 1/σ, (∂ log σ²/∂s)/√2."""
    _, logs = means_and_log_variances(outputs)
    return torch.cat([(-0.5 * logs).exp(), _slope(outputs, logs) / math.sqrt(2)])


def _slope(outputs: Tensor, logs: Tensor) -> Tensor:
    """∂ log σ²/∂s = e^s/σ²."""
    return (outputs.chunk(2, -1)[1] - logs).exp()
