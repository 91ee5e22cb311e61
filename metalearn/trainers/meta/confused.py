"""Which classes a learner confuses over tasks, with a picture of some.

Axes: T tasks, N samples of a set, W classes of a task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from metalearn.errors import SettingError
from metalearn.evaluation import Confusion, ConfusionCounts
from metalearn.tasks import Episode
from metalearn.tracking.confusion_figures import ConfusedQuery, confusion_figure
from metalearn.types import Batch, Split, TaskDistribution

__all__ = ["NamedTask", "confusion_lines", "confusions_of", "draw_confusions", "named_tasks"]

_ABSENT = "no class of the task"
_ROWS = 12  # confusions that a picture shows


class NamedTask(NamedTuple):
    """A task whose classes have names."""

    names: Sequence[str]
    support: Batch
    query: Batch

    @classmethod
    def of_episode(cls, episode: Episode) -> NamedTask:
        """Of pictures from files."""
        return cls(episode.class_names, episode.support, episode.query)


def named_tasks(tasks: TaskDistribution, split: Split, count: int) -> Iterator[NamedTask]:
    """The first ``count`` tasks of a split.

    Raises:
        SettingError: tasks whose classes have no names.
    """
    names = getattr(tasks, "class_names", None)
    if names is None or tasks.kind != "classification":
        accepted = "0 is needed: the classes of the run's tasks have no names"
        raise SettingError("confusions", type(tasks).__name__, accepted)
    for index in range(count):
        support, query = ((x[0], y[0]) for x, y in tasks.sample(split, [index]))
        yield NamedTask(names(split, index), support, query)


def confusions_of(tasks: Iterable[NamedTask], predictions: Iterable[Tensor]) -> ConfusionCounts:
    """What was taken for what, of predicted classes ``[N]`` of each task.

    A network with more outputs than a task has classes may predict one that is not there.
    """
    found = ConfusionCounts()
    for task, predicted in zip(tasks, predictions):
        absent = int(predicted.max()) + 1 - len(task.names) if len(predicted) else 0
        names = [*task.names, *[_ABSENT] * absent]
        found.update(names, task.query[1].cpu(), predicted[: len(task.query[1])].cpu())
    return found


def confusion_lines(counts: ConfusionCounts, found: Sequence[Confusion]) -> list[str]:
    """A table in words."""
    lines = [
        f"confusions: {counts.errors} of {counts.queries} queries, each alone, were taken for "
        f"another class; the most frequent of {counts.tasks} tasks:"
    ]
    width = max((len(c.true) for c in found), default=0)
    lines += [
        f"  {c.true:<{width}}  taken for {c.predicted}: {c.count} of {c.chances}" for c in found
    ]
    return lines


def draw_confusions(found: Sequence[Confusion], tasks: Iterable[NamedTask]) -> Figure | None:
    """Examples of the first confusions; None where there are none, or inputs are no pictures.

    Args:
        found: the confusions, most frequent first.
        tasks: in the order in which they were counted.
    """
    rows = found[:_ROWS]
    wanted = {task for confusion in rows for task, _ in confusion.examples}
    known = {index: task for index, task in enumerate(tasks) if index in wanted}
    if not rows or any(task.query[0].dim() != 4 for task in known.values()):
        return None
    shown = [(_name(c), [_example(c, known[t], query) for t, query in c.examples]) for c in rows]
    return confusion_figure(
        shown, title="query (grey) · its class (green) · the class it was taken for (red)"
    )


def _name(confusion: Confusion) -> str:
    ends = f"{confusion.true}\nfor {confusion.predicted}"
    return f"{ends}, {confusion.count} of {confusion.chances}"


def _example(confusion: Confusion, task: NamedTask, query: int) -> ConfusedQuery:
    def of_class(name: str) -> Tensor:
        if name not in task.names:
            return torch.zeros_like(picture)
        label = list(task.names).index(name)
        shown: Tensor = task.support[0][int(torch.nonzero(task.support[1] == label)[0])]
        return shown

    picture: Tensor = task.query[0][query]
    return ConfusedQuery(picture, of_class(confusion.true), of_class(confusion.predicted))
