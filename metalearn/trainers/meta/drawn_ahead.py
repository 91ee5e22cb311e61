"""Tasks of several steps drawn at once, where that is cheaper than those of each alone.

Axes: T tasks of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metalearn.core.tree import tree_map
from metalearn.errors import check_whole
from metalearn.types import TaskBatch

__all__ = ["DrawnAhead"]


class DrawnAhead:
    """Training tasks by their numbers, those that follow drawn with them.

    A source says by ``tasks_ahead`` how many it draws at once with gain; all its tasks have the
    same sizes then, so that those of a step are a part of the block. Others are drawn as they are
    asked for.

    Args:
        draw: gives the training tasks of a range of numbers.
        end: the number after the last task of the training, beyond which none is drawn ahead.
    """

    def __init__(self, draw: Callable[[range], TaskBatch], end: int) -> None:
        self._draw, self._end = draw, end
        self._block: TaskBatch | None = None
        self._numbers, self._source = range(0), None

    def __call__(self, source: Any, indices: range) -> TaskBatch:
        """The tasks ``indices`` of a source, leaves ``[T, ...]`` that are nobody else's.

        Raises:
            SettingError: the source's ``tasks_ahead`` is no number of tasks.
        """
        many = getattr(source, "tasks_ahead", 1)
        check_whole(f"{type(source).__name__}.tasks_ahead", many, 1)
        steps = many // len(indices)
        if steps < 2:
            return self._draw(indices)
        known = self._numbers
        held = source is self._source and known.start <= indices.start
        if self._block is None or not held or indices.stop > known.stop:
            stop = min(indices.start + steps * len(indices), max(self._end, indices.stop))
            self._numbers, self._source = range(indices.start, stop), source
            self._block = self._draw(self._numbers)
        start = indices.start - self._numbers.start
        # copies: what is at another place in memory may be computed with other rounding
        part: TaskBatch = tree_map(lambda x: x[start : start + len(indices)].clone(), self._block)
        return part
