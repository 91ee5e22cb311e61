"""RFS: an embedding that is trained on all classes at once, and a logistic head for each task.

Axes: N samples, B samples of a batch, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from torch import Tensor, nn

from metalearn.core.checks import check_number
from metalearn.signatures import checked
from metalearn.trainers.meta.linear_heads import logistic_weights
from metalearn.trainers.meta.protonet import unit_vectors
from metalearn.trainers.meta.r2d2 import LinearHead
from metalearn.trainers.meta.sample_learner import CLASSIFIER, SampleLearner
from metalearn.types import Batch, Params

__all__ = ["RFS"]


class RFS(SampleLearner):
    """Training: logits f(x)ᵀ w_c + b_c of all training classes, by their cross-entropy on samples.

    At a new task: logits u(x)ᵀ W with u(x) = f(x) / ‖f(x)‖ and W ``[D, C]`` the least
    Σ_n H(y_n, softmax(u_n W)) + λ/2 ‖W‖² of the support set, at the optimum (`MetaOptNet`'s
    logistic head, which is not trained through here).

    Args:
        module: as for `FeatureLearner`.
        ridge: λ, above 0.
        settings: those of `SampleLearner`.

    Raises:
        SettingError: a value out of range, a module that cannot work, tasks of regression.

    Source: Tian, Wang, Krishnan, Tenenbaum and Isola, "Rethinking Few-Shot Image Classification: a
    Good Embedding Is All You Need?", ECCV 2020. λ = 1 is the paper's, whose logistic regression has
    a bias too. Its generations of self-distillation and its augmented support sets are left out.
    """

    label = called = "rfs"

    @checked
    def __init__(
        self,
        module: nn.Module,
        *,
        ridge: float = 1.0,
        **settings: Annotated[Any, SampleLearner],
    ) -> None:
        check_number("ridge", ridge, above=0)
        super().__init__(module, **settings)
        self.ridge = ridge

    def learn_classes(self, classes: int, features: int) -> None:
        """See `SampleLearner`; with a bias for each class, from 0."""
        known = self.training_classes
        super().learn_classes(classes, features)
        if known is None:
            self.learn("classifier_bias", self.params[CLASSIFIER].new_zeros(classes))

    def class_logits(self, params: Params, features: Tensor) -> Tensor:
        """Logits ``[B, C]`` of the training classes."""
        logits: Tensor = features @ params[CLASSIFIER].mT + params[f"{CLASSIFIER}_bias"]
        return logits

    def fit(
        self, params: Params, support: Batch, *, steps: int | None = None
    ) -> Iterator[LinearHead]:
        """One state: the weights of the logistic regression."""
        self.count_steps(steps)
        features, targets = self.described(params, support)
        ridge = features.new_tensor(self.ridge)
        yield LinearHead(params, logistic_weights(unit_vectors(features), targets, ridge))

    def predict(self, state: LinearHead, inputs: Tensor) -> Tensor:
        """Logits ``[N, C]``."""
        features: Tensor = self.apply(state.params, self.buffers, inputs)
        return unit_vectors(features) @ state.weights
