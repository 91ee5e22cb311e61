"""Methods that all trainers by gradients of single samples have; a trainer takes them by name.

Axes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from metalearn.random_streams import check_split
from metalearn.signatures import checked
from metalearn.trainers.diagnostics import DiagnosisData, DiagnosticSource
from metalearn.trainers.supervised.batches import LabelledBatch
from metalearn.trainers.supervised.plans import SamplePlan
from metalearn.trainers.supervised.regression_reports import RegressionTest
from metalearn.trainers.supervised.reports import EnsembleTest
from metalearn.trainers.supervised.sample_training import SampleTraining
from metalearn.types import Params, Split

__all__ = ["diagnosis_sources", "loss", "params", "plan", "predict", "reports", "score"]


class SampleMethods(Protocol):
    """A trainer that has these methods."""

    training: SampleTraining


def loss(self: SampleMethods, params: Params, batch: LabelledBatch) -> Tensor:
    """Mean loss of a batch ``(inputs, targets)`` at given parameters, a scalar."""
    return self.training.objective.loss(params, batch)


@checked
def predict(self: Any, inputs: Tensor) -> Tensor:
    """Outputs ``[1, N, C]`` in evaluation mode."""
    training: SampleTraining = self.training
    return training.model.predict(inputs)


@checked
def score(self: Any, *, split: Split = "test") -> EnsembleTest | RegressionTest:
    """Scores on a split as the module stands (of one member), and of classes temperature.

    Where the validation split is not read in training there is no temperature.
    """
    check_split(split)
    training: SampleTraining = self.training
    return training.test(split)


def reports(
    self: Any, split: Split = "test", *, tasks: int = 600, inductive: bool | None = True
) -> dict[str, EnsembleTest | RegressionTest]:
    """See `Trainer.reports`: one `test`, under the name of the split."""
    return {split: score(self, split=split)}


def diagnosis_sources(self: Any, data: DiagnosisData) -> Iterator[tuple[str, DiagnosticSource]]:
    """The module on samples of a split, in evaluation mode."""
    training: SampleTraining = self.training
    return training.diagnosis_sources(data)


@property  # type: ignore[misc]
def params(self: SampleMethods) -> Params:
    """Parameters that are trained, by name; they share storage with the module."""
    return self.training.model.params


@property  # type: ignore[misc]
def plan(self: SampleMethods) -> SamplePlan | None:
    """How gradients are taken; None before that is decided."""
    return self.training.objective.plan
