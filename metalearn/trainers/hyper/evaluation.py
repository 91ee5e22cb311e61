"""How networks do that are trained by whole runs, on samples that shaped nothing.

Axes: R whole runs, N samples, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from matplotlib.figure import Figure

from metalearn.tracking import Tracker
from metalearn.trainers.loop.protocols import Evaluation, Stateless
from metalearn.trainers.supervised.model_evaluation import Monitor
from metalearn.trainers.supervised.predictions import SplitReport

__all__ = ["HyperEvaluator"]


class HyperEvaluator(Stateless):
    """Scores networks that whole runs train with what has been learnt so far.

    Args:
        report: of R networks on the half of the validation part that shapes nothing.
        draw: makes a figure of what has been learnt, under a title; None makes none.
        monitor: what decides which state is best.
    """

    bands: Mapping[str, Sequence[str]] = {}

    def __init__(
        self,
        report: Callable[[], SplitReport],
        draw: Callable[[str], Figure | None],
        monitor: Monitor,
    ) -> None:
        self.report, self._figure = report, draw
        self.monitor = "validation/accuracy" if monitor == "accuracy" else "validation/nll"
        self.larger_is_better = monitor == "accuracy"

    def __call__(self, step: int) -> Evaluation:
        """Means over the R networks of what each scores."""
        report = self.report()
        rows = [report.member(index) for index in range(len(report.members.nll))]
        numbers = {f"validation/{k}": sum(row[k] for row in rows) / len(rows) for k in rows[0]}
        scores = torch.tensor([numbers[self.monitor]], dtype=torch.float64)

        def draw(tracker: Tracker, step: int) -> None:
            figure = self._figure(f"learnt, step {step}")
            if figure is not None:
                tracker.figure(step, "hyper/learnt", figure)

        return Evaluation(numbers, scores, draw)
