"""How one module does on a split: the validations of its training.

Axes: N samples of a split, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

from metalearn.evaluation import EnsembleReport
from metalearn.tracking import Tracker, reliability_figure
from metalearn.trainers.loop.protocols import Evaluation, Stateless
from metalearn.trainers.supervised.predictions import SplitReport

__all__ = ["ModelEvaluator", "Monitor"]

Monitor = Literal["loss", "accuracy"]


class ModelEvaluator(Stateless):
    """Scores one module on the validation split.

    Args:
        report: of the validation split, as the module stands.
        monitor: what decides which state is best.
    """

    bands: Mapping[str, Sequence[str]] = {}

    def __init__(self, report: Callable[[], SplitReport], monitor: Monitor) -> None:
        self.report = report
        self.monitor = "validation/accuracy" if monitor == "accuracy" else "validation/nll"
        self.larger_is_better = monitor == "accuracy"

    def __call__(self, step: int) -> Evaluation:
        """Scores, and of classes a figure of their reliability."""
        report = self.report()
        numbers = {f"validation/{name}": value for name, value in report.member(0).items()}
        scores = torch.tensor([numbers[self.monitor]], dtype=torch.float64)

        def draw(tracker: Tracker, step: int) -> None:
            if isinstance(report, EnsembleReport):
                _draw(report, tracker, step)

        return Evaluation(numbers, scores, draw)


def _draw(report: EnsembleReport, tracker: Tracker, step: int) -> None:
    figure = reliability_figure(report.reliability, title=f"validation, step {step}")
    tracker.figure(step, "validation/reliability", figure)
