"""Scores of a mixture of sets, of the tasks of each set by themselves.

Axes: T tasks, K inner steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.percent import percent
from metalearn.trainers.meta.scores import TaskScores, mean_interval
from metalearn.types import Split, TaskDistribution

__all__ = ["PartReport", "by_set", "with_half"]


@dataclass(frozen=True)
class PartReport:
    """Mean and half-width of the 95 % interval over the tasks of one set, after K inner steps."""

    tasks: int
    loss: Tensor
    """``[2]``: mean, half-width."""
    accuracy: Tensor | None
    """``[2]``; None for regression."""

    def as_json(self) -> dict[str, Any]:
        """Number of tasks, loss and accuracy."""
        found: dict[str, Any] = {"tasks": self.tasks}
        for name, value in (("loss", self.loss), ("accuracy", self.accuracy)):
            if value is not None:
                mean, half = value.tolist()
                found[name] = {"mean": mean, "interval95": half}
        return found

    def line(self, name: str) -> str:
        """The same in words."""
        shown = self.loss if self.accuracy is None else self.accuracy
        mean, half = (f"{v:.4f}" if self.accuracy is None else percent(v) for v in shown.tolist())
        some = "1 task" if self.tasks == 1 else f"{self.tasks} tasks"
        return f"  {some} of {name}: {with_half(mean, half, self.tasks)}"


def with_half(mean: str, half: str, tasks: int) -> str:
    """A mean over tasks and its half-width in words; the one alone where no other tells of it."""
    return f"{mean} ± {half}" if tasks > 1 else mean


def by_set(
    tasks: TaskDistribution, split: Split, scores: TaskScores
) -> Mapping[str, PartReport] | None:
    """By the name of a set, scores of those of the first T tasks of a split that are of it.

    None where tasks are of no sets (`metalearn.tasks.MixtureTasks.set_names`); sets of which there
    is no task are left out.
    """
    names_of = getattr(tasks, "set_names", None)
    if names_of is None:
        return None
    names = names_of(split, range(len(scores.losses)))
    found = {}
    for name in dict.fromkeys(names):
        rows = torch.tensor([own == name for own in names], device=scores.losses.device)
        accuracies = scores.accuracies
        found[name] = PartReport(
            int(rows.sum()),
            _interval(scores.losses[rows]),
            None if accuracies is None else _interval(accuracies[rows]),
        )
    return dict(sorted(found.items()))


def _interval(values: Tensor) -> Tensor:
    """``[T, K+1]`` to mean and half-width ``[2]`` after K steps."""
    return torch.stack(mean_interval(values))[:, -1].cpu()
