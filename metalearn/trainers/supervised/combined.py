"""Several trainings as one ensemble: the predictions of all their members.

Axes: M members of all, B samples, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.data.checksums import data_checksum
from metalearn.errors import SettingError
from metalearn.tracking import NullTracker
from metalearn.trainers.supervised.ensemble_methods import EnsembleMethods
from metalearn.trainers.supervised.regression_reports import RegressionTest
from metalearn.trainers.supervised.reports import EnsembleTest
from metalearn.trainers.supervised.sample_methods import SampleMethods
from metalearn.trainers.supervised.sample_training import SampleTraining
from metalearn.trainers.supervised.scoring import score_split
from metalearn.types import Split

__all__ = ["CombinedEnsembles", "CombinedNetworks", "CombinedPredictions"]


class CombinedPredictions:
    """The predictions of several ensembles, ``x → [M, B, C]``, of all their members.

    Args:
        predictors: each gives ``[M_i, B, C]``.
    """

    def __init__(self, predictors: Sequence[Any]) -> None:
        self.predictors = tuple(predictors)

    def __len__(self) -> int:
        return sum(len(one) for one in self.predictors)

    def __call__(self, inputs: Tensor, **how: Any) -> Tensor:
        """Outputs of every member; ``how`` is handed on, such as ``engine``."""
        return torch.cat([one(inputs, **how) for one in self.predictors])

    def eval(self) -> CombinedPredictions:
        """Put all into evaluation mode."""
        for one in self.predictors:
            one.eval()
        return self


class CombinedEnsembles:
    """Finished trainings of ensembles on the same data, scored as one.

    Args:
        trainers: at least two.

    Raises:
        SettingError: fewer, or trainings on other data or other parts of them.
    """

    def __init__(self, trainers: Sequence[EnsembleMethods]) -> None:
        self.trainers = _of_same_data(trainers)
        self.data_checksum: str | None = self.trainers[0].data_checksum
        self.step = max(trainer.step for trainer in self.trainers)

    @property
    def members(self) -> list[int]:
        """Of each member, the number of the trainer that it is of."""
        counts = [len(trainer.predictive()) for trainer in self.trainers]
        return [number for number, count in enumerate(counts) for _ in range(count)]

    def predictive(self) -> CombinedPredictions:
        """What predicts ``[M, B, C]``."""
        return CombinedPredictions([trainer.predictive().eval() for trainer in self.trainers])

    def reports(
        self, split: Split = "test", *, tasks: int = 600, inductive: bool | None = True
    ) -> dict[str, EnsembleTest | RegressionTest]:
        """One test of all members on a split of the data, under the split's name."""
        training = self.trainers[0].training
        return {split: training.test(self.predictive(), split, self.step, NullTracker())}


class CombinedNetworks:
    """Finished trainings of single networks on the same data, scored as one ensemble.

    Args:
        trainers: at least two.

    Raises:
        SettingError: fewer, or trainings on other data or other parts of them.
    """

    def __init__(self, trainers: Sequence[SampleMethods]) -> None:
        self.trainers = _of_same_data(trainers)
        self.data_checksum: str | None = self.trainers[0].data_checksum
        self.step = max(trainer.step for trainer in self.trainers)

    @property
    def members(self) -> list[int]:
        """Of each member, the number of the trainer that it is of."""
        return list(range(len(self.trainers)))

    def predict(self, inputs: Tensor) -> Tensor:
        """Outputs of every network, ``[M, B, C]``, in evaluation mode."""
        return torch.cat([trainer.training.model.predict(inputs) for trainer in self.trainers])

    def reports(
        self, split: Split = "test", *, tasks: int = 600, inductive: bool | None = True
    ) -> dict[str, EnsembleTest | RegressionTest]:
        """One test of all networks on a split of the data, under the split's name.

        The temperature of classes is that of their mean prediction on the validation split, where
        all of them may read it.
        """
        training: SampleTraining = self.trainers[0].training
        read = all(trainer.training.validated for trainer in self.trainers)
        found = score_split(
            self.predict, training.data, split, members=len(self.trainers), validated=read,
            device=training.device, metrics=training.metrics,
        )  # fmt: skip
        return {split: found}


def _of_same_data(trainers: Sequence[Any]) -> tuple[Any, ...]:
    """Several trainings on the same data; those that tell of none are compared all the same.

    Raises:
        SettingError: there are fewer than two; samples, or their division into parts, differ.
    """
    if len(trainers) < 2:
        raise SettingError("trainers", len(trainers), "at least two are needed")
    if len({data_checksum(trainer.data) for trainer in trainers}) > 1:
        accepted = (
            "the same data in the same parts are needed; data.seed=0 keeps them where the "
            "seed of trainings differs"
        )
        raise SettingError("run", "other data", accepted)
    return tuple(trainers)
