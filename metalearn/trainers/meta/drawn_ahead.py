"""Tasks drawn before they are needed: those of several steps at once, and beside the steps.

Axes: T tasks of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import count, takewhile
from typing import Any

import torch

from metalearn.core.tree import tree_map
from metalearn.errors import check_whole
from metalearn.trainers.loop.drawer import Drawer, Workers
from metalearn.trainers.loop.protocols import Callback, Training
from metalearn.types import TaskBatch

__all__ = ["DrawnAhead", "DrawnWhileTraining"]


class DrawnAhead:
    """Training tasks by their numbers, those that follow drawn with them, or beside the steps.

    A source says by ``tasks_ahead`` how many it draws at once with gain; all its tasks have the
    same sizes then, so that those of a step are a part of the block. Others are drawn step by step.
    In a training, threads may draw the next steps or blocks, see `Drawer`.

    Args:
        draw: gives the training tasks of a range of numbers.
        end: the number after the last task of the training, beyond which none is drawn ahead.
        stride: how many numbers later the next step's tasks are; None: as many as a step has.
        workers: threads that draw in a training.
        device: where tasks are drawn.
    """

    def __init__(
        self,
        draw: Callable[[range], TaskBatch],
        end: int,
        *,
        stride: int | None = None,
        workers: Workers = 0,
        device: torch.device | None = None,
    ) -> None:
        self._drawer = Drawer(draw, workers, device or torch.device("cpu"))
        self._end, self._stride = end, stride
        self._block: TaskBatch | None = None
        self._numbers, self._source = range(0), None

    def training(self, source: Any) -> AbstractContextManager[None]:
        """A block in which threads may draw from a source; see `Drawer.training`."""
        return self._drawer.training(source)

    def __call__(self, source: Any, indices: range, *, blocks: bool = True) -> TaskBatch:
        """The tasks ``indices`` of a source, leaves ``[T, ...]`` that are nobody else's.

        Args:
            source: of the tasks.
            indices: of a step.
            blocks: whether ``tasks_ahead`` counts, which is about tasks and not samples.

        Raises:
            SettingError: the source's ``tasks_ahead`` is no number of tasks.
        """
        many = getattr(source, "tasks_ahead", 1) if blocks else 1
        check_whole(f"{type(source).__name__}.tasks_ahead", many, 1)
        steps = many // len(indices)
        if steps < 2:
            found: TaskBatch = self._drawer(source, indices, self._later(indices, 1))
            return found
        known = self._numbers
        held = source is self._source and known.start <= indices.start
        if self._block is None or not held or indices.stop > known.stop:
            each = steps * len(indices)
            self._block = None
            self._numbers, self._source = self._block_at(indices, each), source
            # the next one begins at the first step that is not wholly in this one
            apart = (each - len(indices)) // (self._stride or len(indices)) + 1
            later = (self._block_at(step, each) for step in self._later(indices, apart))
            self._block = self._drawer(source, self._numbers, later)
        start = indices.start - self._numbers.start
        # copies: what is at another place in memory may be computed with other rounding
        part: TaskBatch = tree_map(lambda x: x[start : start + len(indices)].clone(), self._block)
        return part

    def _block_at(self, indices: range, size: int) -> range:
        """The numbers that are drawn at once where those of a step are not there."""
        return range(indices.start, min(indices.start + size, max(self._end, indices.stop)))

    def _later(self, indices: range, strides: int) -> Iterator[range]:
        """The numbers of later steps, as long as there are some, so many steps apart each time."""
        shift = strides * (self._stride or len(indices))
        every = (range(indices.start + k * shift, indices.stop + k * shift) for k in count(1))
        return takewhile(lambda numbers: numbers.stop <= self._end, every)


class DrawnWhileTraining(Callback):
    """Lets tasks be drawn ahead for as long as a training goes on.

    Args:
        ahead: what draws them.
        source: gives where from.
    """

    def __init__(self, ahead: DrawnAhead, source: Callable[[], Any]) -> None:
        self._ahead, self._of = ahead, source

    def during(self, loop: Training) -> AbstractContextManager[None]:
        """The block in which threads may draw."""
        return self._ahead.training(self._of())
