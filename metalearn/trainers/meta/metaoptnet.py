"""MetaOptNet: a regularised linear classifier on features, at its optimum for each task.

Axes: N samples, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from torch import Tensor, nn

from metalearn.core.checks import check_number
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.trainers.meta.feature_learner import FeatureLearner
from metalearn.trainers.meta.linear_heads import logistic_weights, ridge_weights
from metalearn.trainers.meta.r2d2 import LinearHead
from metalearn.types import Batch, Params

__all__ = ["MetaOptNet"]

Head = Literal["ridge", "logistic"]
_WEIGHTS = {"ridge": ridge_weights, "logistic": logistic_weights}


class MetaOptNet(FeatureLearner):
    """Logits s · f(x)ᵀ W with W the best linear classifier of the support set, λ > 0 given.

    ``"ridge"`` has the least ‖X W − Y‖² + λ‖W‖², ``"logistic"`` the least cross-entropy
    Σ_n H(y_n, softmax(x_n W)) + λ/2 ‖W‖², with X ``[N, D]`` the support features and Y ``[N, C]``
    one-hot. Both are solved to the optimum and differentiated there, the logistic one implicitly.
    The scale s is learnt beside the network (``learnt.scale``). There is no intercept. The paper's
    third head, a support vector machine, is not here; its code solves the ridge head as a
    quadratic programme, here it is in closed form. The logistic head has a system of size
    C · min(N, D).

    Args:
        module: as for `FeatureLearner`.
        head: ``"ridge"`` or ``"logistic"``.
        ridge: λ, above 0.
        scale: where s starts.
        settings: those of `FeatureLearner`.

    Raises:
        SettingError: a value out of range, a module that cannot work, tasks of regression.

    Source: Lee, Maji, Ravichandran and Soatto, "Meta-Learning with Differentiable Convex
    Optimization", CVPR 2019.
    """

    label = called = "metaoptnet"

    @checked
    def __init__(
        self,
        module: nn.Module,
        *,
        head: Head = "ridge",
        ridge: float = 1.0,
        scale: float = 10.0,
        **settings: Annotated[Any, FeatureLearner],
    ) -> None:
        check_number("ridge", ridge, above=0)
        check_number("scale", scale)
        if head not in get_args(Head):
            accepted = f"one of {', '.join(get_args(Head))} is needed"
            raise SettingError("head", head, accepted)
        super().__init__(module, **settings)
        self.head, self.ridge = head, ridge
        self.learn("scale", scale)

    def fit(
        self, params: Params, support: Batch, *, steps: int | None = None
    ) -> Iterator[LinearHead]:
        """One state: the weights of the classifier."""
        self.count_steps(steps)
        features, targets = self.described(params, support)
        ridge = features.new_tensor(self.ridge)
        yield LinearHead(params, _WEIGHTS[self.head](features, targets, ridge))

    def predict(self, state: LinearHead, inputs: Tensor) -> Tensor:
        """Logits ``[N, C]``."""
        features: Tensor = self.apply(state.params, self.buffers, inputs)
        logits: Tensor = state.params["learnt.scale"] * (features @ state.weights)
        return logits
