"""Small findings of attributions, of pictures, of vectors and of numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metalearn.attribution import (
    CHANCE,
    Findings,
    LeaveKOut,
    RunCurvature,
    TargetSamples,
    TrainingExamples,
    brittleness,
    subset_outcomes,
)


def found(
    targets: int = 3,
    *,
    shape: tuple[int, ...] = (1, 8, 8),
    regression: bool = False,
    **changes: Any,
) -> Findings:
    """Findings of 20 examples and three classes, made of random numbers."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator)

    scores = {"exact": draw(targets, 20) - 0.5, "tracin": draw(targets, 20) - 0.5}
    weights = (draw(6, 20) > 0.2).float()
    classes = torch.arange(targets) % 3
    left = {name: draw(targets, 2) for name in (*scores, CHANCE)}
    flips = {n: brittleness(draw(1 + 2 * targets, targets, 3), [1, 4]) for n in left}
    given: dict[str, Any] = {
        "run": "outputs/a run",
        "state": "after step 40",
        "split": "test",
        "targets": TargetSamples(
            draw(targets, 1) if regression else classes,
            draw(targets),
            10 + torch.arange(targets),
            draw(targets, *shape),
            None if regression else draw(targets, 3).softmax(1),
        ),
        "examples": TrainingExamples(
            draw(20, 1) if regression else torch.arange(20) % 3, draw(20, *shape)
        ),
        "scores": scores,
        "self_scores": {"el2n": draw(20)},
        "seconds": {"exact": 1.5},
        "class_names": None if regression else ("ant", "bee", "cat"),
        "retrained": [subset_outcomes(scores, weights, draw(6, targets))],
        "leave_k_out": LeaveKOut(
            [1, 4], left, {name: draw(targets, 2) for name in scores}, {} if regression else flips
        ),
        "curvature": RunCurvature([0, 20, 39], [5.0, 12.0, 30.0], [0.1, 0.1, 0.05]),
        "walk_norms": draw(targets, 41),
        "warnings": ["the run is not smooth"],
        "settings": {"damping": 0.1, "subsets": {"count": 6}},
        "provenance": {"git": None},
    }
    return Findings(**{**given, **changes})
