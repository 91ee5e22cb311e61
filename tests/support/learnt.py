"""Small findings of a meta-learner, of pictures, of vectors and of numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metalearn.attribution import LearnerFindings, TrainedTasks
from metalearn.evaluation.seeds import SeedMean
from metalearn.types import TaskBatch

T, Q, S, N = 3, 4, 6, 5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def learnt(*, regression: bool = False, pictures: bool = True, **changes: Any) -> LearnerFindings:
    """Findings of three test tasks and five training tasks, made of random numbers."""
    shape = (1, 8, 8) if pictures else (2,)
    labels = [torch.arange(count).expand(T, count) % 3 for count in (S, Q)]
    if regression:
        labels = [draw(T, count, 1) for count in (S, Q)]
    trained = TrainedTasks(
        [0, 2, 4, 6, 8], draw(T, N) - 0.5, [f"task {n}" for n in range(N)],
        draw(N, 1, 17, 17) if pictures else None,
    )  # fmt: skip
    given: dict[str, Any] = {
        "run": "outputs/a <run>",
        "state": "after step 40, the mean of 2 members",
        "split": "test",
        "learner": "MetaLearner",
        "numbers": [7, 8, 12],
        "tasks": TaskBatch((draw(T, S, *shape), labels[0]), (draw(T, Q, *shape), labels[1])),
        "losses": draw(T, Q),
        "scores": {"adaptation": draw(T, Q, S) - 0.5, "left_out": draw(T, Q, S, seed=1) - 0.5},
        "probabilities": None if regression else draw(T, Q, 4).softmax(-1),
        "agreement": SeedMean(0.7, 0.1, 0.2),
        "disagreement": {"adaptation": draw(T, Q), "left_out": draw(T, Q, seed=1)},
        "trained": trained,
        "class_names": None if regression else [["ant", "bee", "cat"]] * T,
        "seconds": {"adaptation": 1.5, "left_out": 20.0, "training_tasks": 3.0},
        "warnings": ["left out: <this>"],
        "settings": {"targets": 3},
        "provenance": {"git": None},
    }
    return LearnerFindings(**{**given, **changes})
