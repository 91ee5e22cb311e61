"""The tasks that a meta-learner was trained on, scored for test tasks, and how they look.

Axes: M networks, T test tasks, N training tasks, S support examples, W classes of a task, C
checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.attribution.found_samples import check_shape
from metalearn.attribution.training_tasks import task_scores
from metalearn.core.targets import is_label
from metalearn.errors import SettingError
from metalearn.signatures import check_fields
from metalearn.stretches import stretch
from metalearn.types import Params, TaskBatch

__all__ = ["TrainedTasks", "scored_trained_tasks", "task_pictures"]

_MOST = 9  # classes that a picture of a task shows
_GAP = 1  # pixels between them


@dataclass(frozen=True, eq=False)
class TrainedTasks:
    """Training tasks and what they did to the losses of test tasks.

    Raises:
        SettingError: shapes that do not fit.
    """

    numbers: Sequence[int]
    """N of them, in the training split."""
    scores: Tensor
    """``[T, N]``; positive: a step on the task lowers the query loss of the test task."""
    names: Sequence[str] | None = None
    """N, such as the names of the classes."""
    pictures: Tensor | None = None
    """``[N, channels, height, width]``, an example of each class."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_shape("scores", self.scores, ("T", len(self.numbers)))
        count = len(self.numbers)
        if self.names is not None and len(self.names) != count:
            raise SettingError("names", len(self.names), f"one for each of {count} tasks is needed")
        if self.pictures is not None:
            check_shape("pictures", self.pictures, (count, "channels", "height", "width"))


def scored_trained_tasks(
    sample: Callable[[Sequence[int]], TaskBatch],
    numbers: Sequence[int],
    targets: TaskBatch,
    *,
    gradients_fn: Callable[[Params, TaskBatch], Params],
    checkpoints: Sequence[Sequence[Params]],
    learning_rates: Sequence[float],
    names: Callable[[int], Sequence[str]] | None,
    at_once: int,
    **how: Any,
) -> TrainedTasks:
    """`task_scores`, the mean over networks, of tasks that are drawn some at a time.

    Args:
        sample: from numbers to training tasks.
        numbers: N.
        targets: T test tasks.
        gradients_fn: as of `task_scores`.
        checkpoints: of each of M networks, C trees of parameters.
        learning_rates: C.
        names: of the classes of a task, by its number; None where they have none.
        at_once: tasks that are drawn together.
        how: further settings of `task_scores`.
    """
    scores, pictures = [], []
    how |= {"learning_rates": learning_rates}
    with stretch("training tasks", len(numbers), "tasks") as tell:
        for first in range(0, len(numbers), at_once):
            some = numbers[first : first + at_once]
            tasks = sample(some)
            each = [
                task_scores(gradients_fn, states, targets, tasks, **how) for states in checkpoints
            ]
            scores.append(torch.stack(each).mean(0).cpu())
            pictures.append(_first_examples(tasks))
            tell(len(some))
    texts = None if names is None else [", ".join(map(str, names(number))) for number in numbers]
    known = [part for part in pictures if part is not None]
    together = _tiled(_of_one_width(known)) if len(known) == len(pictures) else None
    return TrainedTasks(list(numbers), torch.cat(scores, 1), texts, together)


def task_pictures(tasks: TaskBatch) -> Tensor | None:
    """The first example of each class side by side, ``[N, channels, height, width]``.

    A class that a task does not have is left blank. None where inputs are no pictures, or
    there are no classes.
    """
    found = _first_examples(tasks)
    return None if found is None else _tiled(found)


def _first_examples(tasks: TaskBatch) -> Tensor | None:
    """Of each class, ``[N, W, channels, height, width]``; NaN where a task does not have it."""
    x, y = tasks.support
    if x.dim() != 5 or not is_label(y):
        return None
    there = y[:, None] == torch.arange(min(_MOST, int(y.max()) + 1), device=y.device)[:, None]
    tasks_along = torch.arange(len(x), device=x.device)[:, None]
    found: Tensor = x[tasks_along, there.int().argmax(2)].detach().float()
    return found.masked_fill(~there.any(2)[..., None, None, None], torch.nan).cpu()


def _of_one_width(parts: Sequence[Tensor]) -> Tensor:
    """Tasks of all parts, with as many classes as the part with most has."""
    classes = max(part.shape[1] for part in parts)
    wide = [
        torch.cat(
            [part, part.new_full((len(part), classes - part.shape[1], *part.shape[2:]), torch.nan)],
            1,
        )
        for part in parts
    ]
    return torch.cat(wide)


def _tiled(pictures: Tensor) -> Tensor:
    """``[N, W, channels, height, width]`` in rows and columns.

    The brightest number stands between them, and where there is none.
    """
    count, classes, channels, height, width = pictures.shape
    columns = math.ceil(math.sqrt(classes))
    rows = math.ceil(classes / columns)
    size = (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP)
    blank = float(pictures.nan_to_num(nan=-torch.inf).max())
    found = pictures.new_full((count, channels, *size), blank)
    for number in range(classes):
        top, left = (number // columns) * (height + _GAP), (number % columns) * (width + _GAP)
        found[:, :, top : top + height, left : left + width] = pictures[:, number]
    return found.nan_to_num(nan=blank)
