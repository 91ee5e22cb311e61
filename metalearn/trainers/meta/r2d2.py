"""R2D2: a ridge regression on features, solved for each task; its derivative is that of a solve.

Axes: N samples, C classes, D features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from metalearn.core.checks import check_number
from metalearn.signatures import checked
from metalearn.trainers.meta.feature_learner import FeatureLearner
from metalearn.trainers.meta.linear_heads import ridge_weights
from metalearn.types import Batch, Params

__all__ = ["R2D2", "LinearHead"]


class LinearHead(NamedTuple):
    """What one network makes of a support set."""

    params: Params
    """Of the network, with the scale of logits."""
    weights: Tensor
    """``[D, C]``."""


class R2D2(FeatureLearner):
    """Logits s · f(x)ᵀ W with W = Xᵀ (X Xᵀ + λI)⁻¹ Y of the support features X ``[N, D]``.

    Y ``[N, C]`` is one-hot. The system has the smaller of the sizes N and D. Beside the network λ
    is learnt, which is positive by exp (``learnt.log_ridge``), and s (``learnt.scale``). The
    paper's bias of logits, one number for all classes, is left out: a softmax does not see it.

    Args:
        module: as for `FeatureLearner`.
        ridge: where λ starts, above 0.
        scale: where s starts.
        settings: those of `FeatureLearner`.

    Raises:
        SettingError: a value out of range, a module that cannot work, tasks of regression.

    Source: Bertinetto, Henriques, Torr and Vedaldi, "Meta-learning with differentiable closed-form
    solvers", ICLR 2019.
    """

    label = called = "r2d2"

    @checked
    def __init__(
        self,
        module: nn.Module,
        *,
        ridge: float = 1.0,
        scale: float = 10.0,
        **settings: Annotated[Any, FeatureLearner],
    ) -> None:
        check_number("ridge", ridge, above=0)
        check_number("scale", scale)
        super().__init__(module, **settings)
        self.learn("log_ridge", math.log(ridge))
        self.learn("scale", scale)

    def fit(
        self, params: Params, support: Batch, *, steps: int | None = None
    ) -> Iterator[LinearHead]:
        """One state: the weights of the ridge regression."""
        self.count_steps(steps)
        ridge: Tensor = torch.exp(params["learnt.log_ridge"])
        yield LinearHead(params, ridge_weights(*self.described(params, support), ridge))

    def predict(self, state: LinearHead, inputs: Tensor) -> Tensor:
        """Logits ``[N, C]``."""
        features: Tensor = self.apply(state.params, self.buffers, inputs)
        logits: Tensor = state.params["learnt.scale"] * (features @ state.weights)
        return logits
