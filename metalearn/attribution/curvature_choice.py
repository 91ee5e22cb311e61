"""Which curvature matrix influence functions invert, of all parameters or of chosen ones.

Axes: N examples, C outputs, P chosen parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metalearn.core.curvature.fisher_problem import OutputsFn
from metalearn.core.curvature.likelihood import Likelihood, LikelihoodName
from metalearn.core.curvature.operators import (
    Operator,
    fisher_operator,
    ggn_operator,
    hessian_operator,
)
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
    ) -> Operator:
        """Products with the matrix, of trees like ``params``.

        Args:
            loss_fn: of the chosen parameters.
            params: the chosen ones.
            whole: the tree that ``outputs_fn`` takes, as a function of them.
            batches: of examples.
        """
        if self.kind == "hessian":
            return hessian_operator(loss_fn, params, batches)

        def outputs_fn(part: Params, inputs: Any) -> Tensor:
            assert self.outputs_fn is not None
            return self.outputs_fn(whole(part), inputs)

        if self.kind == "ggn":
            assert self.output_loss is not None
            return ggn_operator(outputs_fn, self.output_loss, params, batches)
        rule = self.likelihood
        assert rule is not None
        rule = rule if isinstance(rule, Likelihood) else Likelihood(rule)
        return fisher_operator(
            outputs_fn, params, batches, likelihood=rule, generator=self.generator
        )
