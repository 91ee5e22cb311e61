"""Methods that all trainers of ensembles have, whatever their members are made of.

A trainer takes them over by name; what differs between trainers is their `predictive`.

Axes: M members, B samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from metalearn.models import Predictor
from metalearn.tracking import Tracker
from metalearn.trainers.diagnostics import DiagnosisData, DiagnosticSource
from metalearn.trainers.members.settings import MemberPlan
from metalearn.trainers.supervised.ensemble_training import EnsembleTraining
from metalearn.trainers.supervised.regression_reports import RegressionTest
from metalearn.trainers.supervised.reports import EnsembleTest
from metalearn.types import Split

__all__ = ["EnsembleMethods", "diagnosis_sources", "plan", "predict", "reports", "score"]


class EnsembleMethods(Protocol):
    """A trainer that has these methods."""

    training: EnsembleTraining

    @property
    def step(self) -> int:
        """Steps taken so far."""

    @property
    def tracker(self) -> Tracker:
        """Where numbers and figures go."""

    def predictive(self) -> Predictor:
        """What training was for: a callable ``x → [M, B, C]``."""


def predict(self: EnsembleMethods, inputs: Tensor) -> Tensor:
    """Outputs of every member, ``[M, B, C]``, in evaluation mode."""
    return self.training.predict(self.predictive(), inputs)


def score(self: EnsembleMethods, *, split: Split = "test") -> EnsembleTest | RegressionTest:
    """Scores on a split as the members stand; of classes temperature, out-of-distribution tests."""
    return self.training.test(self.predictive(), split, self.step, self.tracker)


def reports(
    self: Any, split: Split = "test", *, tasks: int = 600, inductive: bool | None = True
) -> dict[str, EnsembleTest | RegressionTest]:
    """See `Trainer.reports`: one `test`, under the name of the split."""
    return {split: score(self, split=split)}


def diagnosis_sources(self: Any, data: DiagnosisData) -> Iterator[tuple[str, DiagnosticSource]]:
    """All members on samples of a split, in evaluation mode."""
    training: EnsembleTraining = self.training
    return training.diagnosis_sources(data)


@property  # type: ignore[misc]
def plan(self: EnsembleMethods) -> MemberPlan | None:
    """How gradients are taken; None before that is decided."""
    return self.training.planner.plan
