"""How one module does on a split: the validations of its training.

Axes: N samples of a split, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from metalearn.data import ClassificationData
from metalearn.evaluation import EnsembleReport
from metalearn.tracking import Tracker, reliability_figure
from metalearn.trainers.loop.protocols import Evaluation, Stateless
from metalearn.trainers.supervised.predictions import Predict, report_of

__all__ = ["ModelEvaluator", "Monitor"]

Monitor = Literal["loss", "accuracy"]


class ModelEvaluator(Stateless):
    """Scores one module on the validation split.

    Args:
        predict: its logits, ``[1, N, C]``.
        data: labelled samples in three splits.
        monitor: what decides which state is best.
        device: where it predicts.
    """

    bands: Mapping[str, Sequence[str]] = {}

    def __init__(
        self, predict: Predict, data: ClassificationData, monitor: Monitor, device: torch.device
    ) -> None:
        self.predict, self.data, self.device = predict, data, device
        self.monitor = "validation/accuracy" if monitor == "accuracy" else "validation/nll"
        self.larger_is_better = monitor == "accuracy"

    def __call__(self, step: int) -> Evaluation:
        """Scores, and a figure of their reliability."""
        report = report_of(self.predict, self.data, "validation", members=1, device=self.device)
        numbers = {f"validation/{name}": value for name, value in report.member(0).items()}
        scores = torch.tensor([numbers[self.monitor]], dtype=torch.float64)

        def draw(tracker: Tracker, step: int) -> None:
            _draw(report, tracker, step)

        return Evaluation(numbers, scores, draw)


def _draw(report: EnsembleReport, tracker: Tracker, step: int) -> None:
    figure = reliability_figure(report.reliability, title=f"validation, step {step}")
    tracker.figure(step, "validation/reliability", figure)
