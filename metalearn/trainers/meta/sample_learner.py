"""Learners whose embedding is trained as a classifier of all training classes, on samples.

Axes: T batches, B samples of a batch, C training classes, D features.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from metalearn.core.checks import check_pair
from metalearn.core.targets import check_form, check_values
from metalearn.core.tree import check_tensors
from metalearn.errors import SettingError, check_whole
from metalearn.random_streams import check_seed
from metalearn.signatures import checked
from metalearn.trainers.meta.feature_learner import FeatureLearner
from metalearn.types import Batch, Params, TaskBatch

__all__ = ["CLASSIFIER", "SampleLearner"]

CLASSIFIER = "learnt.classifier"
"""The entry of the parameters that has the weights of the training classes, ``[C, D]``."""


class SampleLearner(FeatureLearner):
    """A `FeatureLearner` that in training tells all training classes apart, sample by sample.

    A training step takes T batches of B samples in place of T tasks, each normalised by itself; it
    descends the mean cross-entropy of `class_logits`. The classifier, ``learnt.classifier``, is
    learnt beside the network, and has no part in a task, whose head `fit` makes of the support set.
    A batch of samples is passed as a `TaskBatch` whose two sets are both the batch.

    Args:
        module: as for `FeatureLearner`.
        batch_size: B.
        seed: of the classifier's weights; members of an `Ensemble` start with the same.
        settings: those of `FeatureLearner`.

    Raises:
        SettingError: a value out of range, a module that cannot work, tasks of regression.
    """

    draws = "samples"

    @checked
    def __init__(
        self,
        module: nn.Module,
        *,
        batch_size: int = 16,
        seed: int = 0,
        **settings: Annotated[Any, FeatureLearner],
    ) -> None:
        check_whole("batch_size", batch_size, 1)
        check_seed(seed)
        super().__init__(module, **settings)
        self.batch_size, self.seed = batch_size, seed

    @abstractmethod
    def class_logits(self, params: Params, features: Tensor) -> Tensor:
        """Logits ``[B, C]`` of the training classes, of features ``[B, D]``."""

    @property
    def training_classes(self) -> int | None:
        """C; None before `learn_classes`."""
        found = self.params.get(CLASSIFIER)
        return None if found is None else int(found.shape[-2])

    @checked
    def learn_classes(self, classes: int, features: int) -> None:
        """Have a classifier of C training classes learnt beside the network; a trainer does so.

        Weights are uniform in ±1/√D, as those of ``torch.nn.Linear``.

        Args:
            classes: C.
            features: D.

        Raises:
            SettingError: a classifier of other shape is there already.
        """
        check_whole("classes", classes, 2)
        check_whole("features", features, 1)
        held = self.params.get(CLASSIFIER)
        if held is not None:
            if list(held.shape[-2:]) != [classes, features]:
                accepted = f"[{classes}, {features}] is needed for these tasks, [classes, features]"
                raise SettingError(CLASSIFIER, list(held.shape[-2:]), accepted)
            return
        draws = torch.Generator().manual_seed(self.seed)
        start = torch.rand(classes, features, generator=draws) * 2 - 1
        self.learn("classifier", start / math.sqrt(features))

    def task_loss(self, params: Params, support: Batch, query: Batch) -> Tensor:
        """Mean cross-entropy of one batch of samples ``(inputs [B, ...], classes [B])``, a scalar.

        The batch is ``query``.
        """
        inputs, classes = check_pair(query, "samples")
        features = self.apply(params, self.buffers, inputs)
        return self.criterion(self.class_logits(params, features), classes)

    def check_training(self, batches: TaskBatch) -> None:
        """Refuse classes of samples that are out of range.

        Raises:
            SettingError: those, and training before `learn_classes`.
        """
        count = self.training_classes
        if count is None:
            accepted = "learn_classes(classes, features) is needed before training; a trainer does"
            raise SettingError("training_classes", None, accepted)
        _, classes = check_pair(batches.query, "samples")
        check_tensors(classes, "classes of the samples")
        check_form(True, (len(classes[0]), count), classes[0])
        if classes.device.type == "cpu":
            check_values(classes, count, "classes of the samples")
