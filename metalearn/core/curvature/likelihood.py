"""What a model's outputs mean: the distribution over targets, and the Fisher matrix of outputs.

The Fisher matrix of the parameters is built from that of the outputs. For one sample with outputs
f ``[C]`` the latter is written as S·Sᵀ with a factor S of R columns; then

F(θ) = 1/N · Σ_n J_nᵀ S_n S_nᵀ J_n, with J_n = ∂f(θ, x_n)/∂θ ``[C, P]``.

Axes: N samples, C outputs, R columns of a factor, P parameters, D draws of a target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.core.curvature.gaussian import (
    means_and_log_variances,
    output_factor,
    output_score,
)
from metalearn.core.random_tensors import normal, uniform
from metalearn.core.targets import IGNORED
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import known_fields

__all__ = ["NOT_GIVEN", "AnyLikelihood", "FisherKind", "Likelihood", "LikelihoodName"]


class _NotGiven(int):
    """The default 1 of a keyword that was left out, beside which a `Likelihood` may say another."""


NOT_GIVEN = _NotGiven(1)
LikelihoodName = Literal["categorical", "gaussian", "heteroscedastic_gaussian"]
FisherKind = Literal["exact", "monte_carlo", "empirical"]


@known_fields
@dataclass(frozen=True)
class Likelihood:
    """A distribution over targets given outputs, and which Fisher matrix is taken of it.

    Functions that take ``likelihood=`` take this value in place of ``likelihood``, ``kind``,
    ``samples`` and ``variance`` one by one.

    Args:
        name: ``"categorical"``: logits f, targets y are class indices, −log p(y | f) =
            cross-entropy; a target of −100 is padding, whose gradient is zero. ``"gaussian"``:
            means f, targets ``[C]``, −log p(y | f) = ‖f − y‖² / (2·variance) + constant.
            ``"heteroscedastic_gaussian"``: f are means and log-variances, targets ``[C/2]``; see
            `metalearn.core.curvature.gaussian`.
        kind: ``"exact"``, ``"monte_carlo"`` or ``"empirical"``, as `metalearn.core.fisher_diagonal`
            explains.
        samples: D, Monte Carlo draws for each input.
        variance: σ² of a gaussian likelihood.

    Raises:
        SettingError: an unknown name or kind, numbers out of range, numbers without a use.
    """

    name: LikelihoodName
    kind: FisherKind = "exact"
    samples: int = 1
    variance: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in get_args(LikelihoodName):
            known = ", ".join(get_args(LikelihoodName))
            raise SettingError(
                "likelihood", self.name, f"one of {known} is needed, or a Likelihood"
            )
        if self.kind not in get_args(FisherKind):
            known = ", ".join(get_args(FisherKind))
            raise SettingError("kind", self.kind, f"one of {known} is needed")
        check_whole("samples", self.samples, 1)
        if self.samples != 1 and self.kind != "monte_carlo":
            raise SettingError("samples", self.samples, "only kind='monte_carlo' draws targets")
        check_number("variance", self.variance, above=0, accepted="a number above 0 is needed")
        if self.name != "gaussian" and self.variance != 1:
            raise SettingError("variance", self.variance, "only a gaussian likelihood has one")

    @staticmethod
    def of(
        likelihood: LikelihoodName | Likelihood,
        kind: FisherKind | None,
        samples: int,
        variance: float,
    ) -> Likelihood:
        """One value of what a public function was given; None and `NOT_GIVEN` are what was not.

        Raises:
            SettingError: a keyword that contradicts the `Likelihood` beside it; as the class.
        """
        if not isinstance(likelihood, Likelihood):
            return Likelihood(likelihood, kind, samples, variance)  # type: ignore[arg-type]
        for name, value in (("kind", kind), ("samples", samples), ("variance", variance)):
            own = getattr(likelihood, name)
            if value is not NOT_GIVEN and (name, value) != ("kind", None) and not _same(value, own):
                raise SettingError(
                    name, value, f"the likelihood says {own!r}, so nothing is needed"
                )
        return likelihood

    def columns(self, outputs: int) -> int:
        """R for C = ``outputs``."""
        return {"exact": outputs, "monte_carlo": self.samples, "empirical": 1}[self.kind]

    def targets(self, outputs: int) -> int:
        """Numbers in a target of C = ``outputs``, where it is one of numbers."""
        return outputs // 2 if self.name == "heteroscedastic_gaussian" else outputs

    def noise(self, count: int, outputs: Tensor, generator: torch.Generator | None) -> Tensor:
        """What the draws of targets are made of, ``[N, D]`` or ``[N, D, C]``; D = 0 without draws.

        Args:
            count: N.
            outputs: of one sample ``[C]``; gives the type and device.
            generator: of the draws.

        Raises:
            SettingError: draws are needed and there is no generator.
        """
        if self.kind != "monte_carlo":
            return outputs.new_zeros((count, 0))
        if generator is None:
            raise SettingError("generator", None, "kind='monte_carlo' needs a torch.Generator")
        if self.name == "categorical":
            return uniform((count, self.samples), outputs, generator)
        return normal((count, self.samples, self.targets(outputs.shape[-1])), outputs, generator)

    def factor(self, outputs: Tensor, target: Tensor, noise: Tensor) -> Tensor:
        """Sᵀ of one sample, ``[R, C]``.

        exact: S·Sᵀ = E[∇ log p ∇ log pᵀ], the Hessian of −log p with respect to f: diag(p) − p·pᵀ
        (categorical), 1/variance on the diagonal (gaussian). Monte Carlo: the mean over D draws
        from p(y | f). Empirical: the target at hand, which the others do not look at.
        """
        if self.name == "heteroscedastic_gaussian":
            return self._factor_with_variances(outputs, target, noise)
        if self.name == "gaussian":
            if self.kind == "exact":
                eye = torch.eye(outputs.shape[0], dtype=outputs.dtype, device=outputs.device)
                scaled: Tensor = eye / self.variance**0.5
                return scaled
            if self.kind == "monte_carlo":
                drawn: Tensor = noise / (self.samples * self.variance) ** 0.5
                return drawn
            return ((outputs - target) / self.variance)[None]
        p = outputs.softmax(-1)
        classes = torch.arange(p.shape[0], device=p.device)
        if self.kind == "exact":
            return p.sqrt()[:, None] * ((classes[:, None] == classes).to(p.dtype) - p)
        if self.kind == "monte_carlo":
            drawn = (noise[:, None] >= p.cumsum(-1)).sum(-1).clamp(max=p.shape[0] - 1)
            return (p - (drawn[:, None] == classes).to(p.dtype)) / math.sqrt(self.samples)
        slope = p - torch.eq(target, classes).to(p.dtype)
        return torch.where(target == IGNORED, torch.zeros_like(slope), slope)[None]

    def metric(self, outputs: Tensor, target: Tensor, noise: Tensor, tangent: Tensor) -> Tensor:
        """S·Sᵀ·u of one sample for a tangent u of its outputs, ``[C]``."""
        if self.kind == "exact" and self.name == "categorical":
            p = outputs.softmax(-1)
            return p * (tangent - (p * tangent).sum())
        if self.kind == "exact" and self.name == "gaussian":
            return tangent / self.variance
        if self.kind == "exact":
            return output_factor(outputs).square() * tangent
        factor = self.factor(outputs, target, noise)
        return factor.mT @ (factor @ tangent)

    def _factor_with_variances(self, outputs: Tensor, target: Tensor, noise: Tensor) -> Tensor:
        """Sᵀ ``[R, C]`` where half of the outputs are log-variances."""
        if self.kind == "exact":
            return output_factor(outputs).diag()
        if self.kind == "empirical":
            return output_score(outputs, target)[None]
        means, logs = means_and_log_variances(outputs)
        drawn = means + (0.5 * logs).exp() * noise
        rows = [output_score(outputs, one) for one in drawn]
        return torch.stack(rows) / math.sqrt(self.samples)


AnyLikelihood: TypeAlias = LikelihoodName | Likelihood
"""A name, beside which ``kind``, ``samples`` and ``variance`` stand, or all in one value."""


def _same(given: Any, own: str | float | Tensor) -> bool:
    """Whether a keyword says what the value beside it says; tensors have to be the same one."""
    if isinstance(given, bool | Tensor) or isinstance(own, Tensor):
        return given is own
    return bool(given == own)
