"""MAML with a multi-step loss: the query loss after every inner step counts.

Axes: K inner steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked
from metalearn.trainers.meta.maml import MetaLearner
from metalearn.trainers.meta.settings import MAML

__all__ = ["MultiStepLearner"]


class MultiStepLearner(MetaLearner):
    """A `MetaLearner` that descends Σ_k w_k · L(θ_k, query) with k = 0 … K in training.

    Methods reverse, mixed and first-order take it, in every engine. Scores are those of MAML.

    Args:
        module: as for `MetaLearner`.
        maml: as for `MetaLearner`; ``method="implicit"`` and ``"reptile"`` know the end alone.
        kind: as for `MetaLearner`.
        weights: w_0 … w_K, of ``maml.inner_steps`` K; None takes 1 / (K+1) for each.
        anneal: training steps over which the weights go linearly to (0, …, 0, 1); None keeps them.

    Raises:
        SettingError: as `MetaLearner`; not K + 1 weights, or one that is no number.

    Source: Antoniou, Edwards and Storkey, "How to Train Your MAML", ICLR 2019.
    """

    @checked
    def __init__(
        self,
        module: nn.Module,
        maml: MAML | None = None,
        *,
        kind: Literal["classification", "regression"] = "classification",
        weights: Sequence[float] | None = None,
        anneal: int | None = None,
    ) -> None:
        super().__init__(module, maml, kind=kind)
        count = self.inner_steps + 1
        if self.maml.of_the_end:
            accepted = "auto, reverse, mixed or first_order is needed with a multi-step loss"
            raise SettingError("maml.method", self.maml.method, accepted)
        if weights is not None and len(weights) != count:
            accepted = f"{count} are needed, one for each of θ_0 … θ_{count - 1}"
            raise SettingError("weights", list(weights), accepted)
        self.weights = [1 / count] * count if weights is None else [float(w) for w in weights]
        if not all(map(math.isfinite, self.weights)) or not any(self.weights):
            accepted = "finite numbers, not all of them 0, are needed"
            raise SettingError("weights", self.weights, accepted)
        if anneal is not None:
            check_whole("anneal", anneal, 1)
        self.anneal = anneal

    def gradient_settings(self, step: int = 0) -> dict[str, Any]:
        """As of `MetaLearner`, and the weights of a training step."""
        return {**super().gradient_settings(step), "step_weights": self.weights_at(step)}

    def weights_at(self, step: int) -> list[float]:
        """w_0 … w_K of a training step, counted from 0."""
        done = 0.0 if self.anneal is None else min(1.0, step / self.anneal)
        last = [0.0] * self.inner_steps + [1.0]
        return [(1 - done) * weight + done * end for weight, end in zip(self.weights, last)]
