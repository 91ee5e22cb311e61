"""Learners whose head is made of the features of a support set, in one go.

Axes: N samples, C classes (way), D features.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from metalearn.core import Engine
from metalearn.core.checks import check_pair
from metalearn.core.module.norms import Norm
from metalearn.core.targets import is_label
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.trainers.meta.protocol import Learner
from metalearn.types import Batch, Params

__all__ = ["FeatureLearner", "class_probabilities"]


class FeatureLearner(Learner):
    """A learner of classes that reads features ``[N, D]`` and takes no inner steps: K is 0.

    Classes may be of any number in any split.

    Args:
        module: maps inputs ``[N, ...]`` to features ``[N, D]``; or an `Ensemble` of such modules.
        kind: ``"classification"``.
        engine: ``"batched"``, ``"vmap"``, ``"loop"``, or ``"auto"``; all give the same gradient.
        norm: None, or what to make of batch and instance norms: ``"batch_stats"`` (of the batch
            at hand, none kept), ``"running"`` (statistics of training, fixed within tasks),
            ``"group"``, ``"layer"`` (GroupNorm with several groups, or one); see `convert_norm`.
        chunk_size: tasks at a time; None takes a whole meta-batch.
        features: D, which a trainer holds the module to; None takes what it gives.

    Raises:
        SettingError: a value out of range, a module that cannot work, tasks of regression.
    """

    needs = "features"
    label: ClassVar[str] = "the learner"
    """Its name in the table of learners."""
    called: ClassVar[str] = "the learner"
    """What a message calls it."""

    @checked
    def __init__(
        self,
        module: nn.Module,
        *,
        kind: Literal["classification", "regression"] = "classification",
        engine: Engine = "auto",
        norm: Norm | None = None,
        chunk_size: int | None = None,
        features: int | None = None,
    ) -> None:
        if kind == "regression":
            raise SettingError("kind", kind, f"{self.called} needs tasks of classification")
        how: Any = {"engine": engine, "norm": norm, "chunk_size": chunk_size, "features": features}
        super().__init__(module, kind=kind, **how)

    def described(self, params: Params, support: Batch) -> tuple[Tensor, Tensor]:
        """Features ``[N, D]`` of a support set, and the `class_probabilities` ``[N, C]``."""
        inputs, targets = check_pair(support, "support")
        features = self.apply(params, self.buffers, inputs)
        classes = self.criterion.classes_of(targets)
        return features, class_probabilities(targets, classes, features)

    def count_steps(self, steps: int | None) -> int:
        """0.

        Raises:
            SettingError: a number of inner steps that is not 0.
        """
        if steps:
            raise SettingError("steps", steps, f"{self.label} has no inner loop, so 0 is needed")
        return super().count_steps(steps)


def class_probabilities(targets: Tensor, classes: int, like: Tensor) -> Tensor:
    """``[N, C]`` in the type of ``like``: labels are one-hot, padding (−100) is a row of zeros."""
    if not is_label(targets):
        return targets.to(like.dtype)
    every = torch.arange(classes, device=targets.device)
    return (targets[:, None] == every).to(like.dtype)
