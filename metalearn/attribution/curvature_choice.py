"""Which curvature matrix influence functions invert, of all parameters or of chosen ones.

With weights w on the examples a matrix is that of (1/N)·Σ w_i·ℓ_i, on which a network was trained
whose examples were weighted.

Axes: N examples, C outputs, P chosen parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.func import vmap

from metalearn.core.curvature.fisher_problem import OutputsFn
from metalearn.core.curvature.likelihood import Likelihood, LikelihoodName
from metalearn.core.curvature.operators import (
    Operator,
    fisher_operator,
    ggn_operator,
    hessian_operator,
)
from metalearn.core.samples.gradients import single
from metalearn.errors import SettingError
from metalearn.signatures import check_fields
from metalearn.types import Batch, LossFn, Params

__all__ = ["Curvature", "CurvatureKind"]

CurvatureKind = Literal["hessian", "ggn", "fisher"]


@dataclass(frozen=True)
class Curvature:
    """A curvature matrix ``[P, P]`` of the mean loss over N examples.

    Args:
        kind: ``"hessian"``, ∇²L, which needs nothing more and may have negative eigenvalues;
            ``"ggn"``, Jᵀ·∇²_f L·J, of ``outputs_fn`` and ``output_loss``; ``"fisher"``, of
            ``outputs_fn`` and ``likelihood``, which for kind ``"exact"`` is the GGN of the
            likelihood's loss. The last two have no negative eigenvalues, and take examples that
            are pairs ``(inputs, targets)``.
        outputs_fn: outputs ``[N, C]`` of parameters and inputs.
        output_loss: mean loss of outputs and targets, convex in the outputs.
        likelihood: a `metalearn.core.Likelihood`, or its name alone for the exact Fisher matrix.
        generator: of Monte Carlo draws.

    Raises:
        SettingError: an unknown kind, or one without what it needs.
    """

    kind: CurvatureKind
    outputs_fn: OutputsFn | None = None
    output_loss: Callable[[Any, Any], Tensor] | None = None
    likelihood: LikelihoodName | Likelihood | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind not in get_args(CurvatureKind):
            known = ", ".join(get_args(CurvatureKind))
            raise SettingError("kind", self.kind, f"one of {known} is needed")
        needed = {"ggn": ("outputs_fn", "output_loss"), "fisher": ("outputs_fn", "likelihood")}
        for name in needed.get(self.kind, ()):
            if getattr(self, name) is None:
                raise SettingError(name, None, f"it is needed for kind={self.kind!r}")

    def operator(
        self,
        loss_fn: LossFn,
        params: Params,
        whole: Callable[[Params], Params],
        batches: list[Batch],
        *,
        weighted: bool = False,
    ) -> Operator:
        """Products with the matrix, of trees like ``params``.

        Args:
            loss_fn: of the chosen parameters.
            params: the chosen ones.
            whole: the tree that ``outputs_fn`` takes, as a function of them.
            batches: of examples; where ``weighted``, pairs of examples and their weights.
            weighted: whether they are.

        Raises:
            SettingError: a Fisher matrix with weights, which is the GGN of its loss.
        """
        if self.kind == "hessian":
            return hessian_operator(_weighted(loss_fn) if weighted else loss_fn, params, batches)
        if weighted and self.kind == "fisher":
            accepted = "hessian or ggn is needed with weights, the latter of the likelihood's loss"
            raise SettingError("curvature.kind", self.kind, accepted)

        def outputs_fn(part: Params, inputs: Any) -> Tensor:
            assert self.outputs_fn is not None
            return self.outputs_fn(whole(part), inputs)

        if self.kind == "ggn":
            assert self.output_loss is not None
            if not weighted:
                return ggn_operator(outputs_fn, self.output_loss, params, batches)
            pairs: list[Batch] = [(inputs, (targets, w)) for (inputs, targets), w in batches]
            return ggn_operator(outputs_fn, _weighted_outputs(self.output_loss), params, pairs)
        rule = self.likelihood
        assert rule is not None
        rule = rule if isinstance(rule, Likelihood) else Likelihood(rule)
        return fisher_operator(
            outputs_fn, params, batches, likelihood=rule, generator=self.generator
        )


def _weighted(loss_fn: LossFn) -> LossFn:
    """(1/N)·Σ w_i·ℓ_i of a loss that is a mean over samples, of ``(batch, weights [N])``."""

    def loss(params: Params, batch: Batch) -> Tensor:
        samples, weights = batch
        losses = vmap(lambda sample: loss_fn(params, single(sample)))(samples)
        found: Tensor = (losses * weights).mean()
        return found

    return loss


def _weighted_outputs(
    output_loss: Callable[[Any, Any], Tensor],
) -> Callable[[Any, Any], Tensor]:
    """The same of a loss of outputs and targets: of outputs and ``(targets, weights [N])``."""

    def loss(outputs: Any, pair: Any) -> Tensor:
        targets, weights = pair
        losses = vmap(lambda sample: output_loss(*single(sample)))((outputs, targets))
        found: Tensor = (losses * weights).mean()
        return found

    return loss
