"""Which figures an ensemble's training leaves with its tracker.

Axes: M members, V validations, N samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metalearn.evaluation import EnsembleReport, OODScores
from metalearn.percent import is_accuracy
from metalearn.tracking import (
    Tracker,
    ensemble_size_figure,
    quantile_bands_figure,
    reliability_figure,
    sweep_figure,
    uncertainty_figure,
)
from metalearn.trainers.supervised.predictions import SplitReport

__all__ = ["History", "draw_sweeps", "draw_uncertainty", "draw_validation"]

History = Mapping[str, Sequence[Sequence[float]]]
"""``step`` ``[V, 1]``, and for each score ``[V, M]``."""


def draw_validation(tracker: Tracker, step: int, report: SplitReport, history: History) -> None:
    """Reliability of classes, scores by ensemble size, and the members' course so far."""
    title = f"validation, step {step}"
    if isinstance(report, EnsembleReport):
        reliability = reliability_figure(report.reliability, title=title)
        tracker.figure(step, "validation/reliability", reliability)
    tracker.figure(step, "validation/by_size", ensemble_size_figure(report, title=title))
    steps = torch.tensor(history["step"]).flatten()
    for name in (name for name in history if name != "step"):
        values = torch.tensor(history[name]).T
        figure = quantile_bands_figure(
            steps,
            values,
            ylabel=f"validation {name}",
            title=f"members over training: {name}",
            linear=is_accuracy(name),
        )
        tracker.figure(step, f"validation/members_{name}", figure)


def draw_uncertainty(
    tracker: Tracker,
    step: int,
    inside: Mapping[str, Tensor],
    outside: Mapping[str, Tensor],
    scores: Mapping[str, OODScores],
) -> None:
    """Histograms of each uncertainty in and out of distribution."""
    aurocs = {name: float(found.auroc) for name, found in scores.items()}
    figure = uncertainty_figure(
        inside, outside, title="uncertainty in and out of distribution", auroc=aurocs
    )
    tracker.figure(step, "test/uncertainty", figure)


def draw_sweeps(
    tracker: Tracker,
    step: int,
    settings: Mapping[str, Sequence[float]],
    report: SplitReport,
) -> None:
    """Test scores of the members against each setting that differs between them.

    These are NLL, and accuracy of classes or RMSE of real targets.
    """
    classes = isinstance(report, EnsembleReport)
    first = ("accuracy", True) if classes else ("rmse", False)
    for setting, values in settings.items():
        for name, larger in (first, ("nll", False)):
            figure = sweep_figure(
                values,
                getattr(report.members, name).tolist(),
                name=setting,
                ylabel=f"test {name}",
                title=f"{name} of members against {setting}",
                larger_is_better=larger,
            )
            tracker.figure(step, f"test/{name}_by_{setting}", figure)
