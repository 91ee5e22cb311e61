"""What a predictor gains by staying silent where it is not sure: risk at each coverage.

Axes: N samples last; any axes before them are scored side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.evaluation.calibration import check_confidences, shared_by_ties
from metalearn.signatures import checked

__all__ = ["RiskCoverage", "area_under_risk_coverage", "risk_coverage"]


@dataclass(frozen=True)
class RiskCoverage:
    """The risk–coverage curve.

    Attributes:
        coverage: ``[N]``, i/N of the i most confident samples that are answered (float64).
        risk: ``[..., N]``, their share of errors (float64).
    """

    coverage: Tensor
    risk: Tensor

    @property
    def area(self) -> Tensor:
        """Mean risk over the N coverages, ``[...]``.

        The error itself where confidence says nothing; 0 of a predictor that is always right.
        """
        return self.risk.mean(-1)


@checked
def risk_coverage(confidences: Tensor, hits: Tensor) -> RiskCoverage:
    """The share of errors among the i most confident samples, for i = 1 … N.

    El-Yaniv and Wiener, "On the Foundations of Noise-free Selective Classification", JMLR 2010.
    Samples of equal confidence share their errors, so that their order does not matter. A
    confidence that is NaN makes the whole curve NaN.

    Args:
        confidences: ``[..., N]`` in 0..1, or any number that is larger where one is surer.
        hits: booleans (or 0 and 1) of the same shape.

    Raises:
        SettingError: no sample, or shapes that differ.
    """
    check_confidences(confidences, hits)
    count = confidences.shape[-1]
    ordered, order = confidences.reshape(-1, count).cpu().sort(-1, descending=True)
    wrong = 1 - hits.reshape(-1, count).cpu().double().gather(-1, order)
    answered = torch.arange(1, count + 1, dtype=torch.float64)
    risk = shared_by_ties(ordered, wrong).cumsum(-1) / answered
    risk[ordered.isnan().any(-1)] = math.nan
    return RiskCoverage(answered / count, risk.reshape(confidences.shape))


@checked
def area_under_risk_coverage(confidences: Tensor, hits: Tensor) -> Tensor:
    """AURC: the mean of `risk_coverage` over all coverages, ``[...]`` (float64); lower is better.

    Geifman, Uziel and El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers",
    ICLR 2019.

    Args:
        confidences: ``[..., N]``.
        hits: booleans (or 0 and 1) of the same shape.

    Raises:
        SettingError: no sample, or shapes that differ.
    """
    return risk_coverage(confidences, hits).area
