"""What draws batches: the caller, or where that pays, threads that are ahead of it.

Axes: none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal

import torch

from metalearn.errors import SettingError, check_whole
from metalearn.tasks.thread_safety import threads_may_draw
from metalearn.trainers.loop.draw_times import DrawTimes, spare_processors
from metalearn.trainers.loop.draw_workers import DrawWorkers

__all__ = ["Drawer", "Workers"]

Workers = int | Literal["auto"]
"""Threads that draw ahead; ``"auto"`` has some where drawing is slow."""

_MOST = 256
log = logging.getLogger(__name__)


class Drawer:
    """Draws what belongs to ranges of numbers, in a training by threads where they are wanted.

    A source that says ``thread_safe = True`` may be drawn from by several threads at once. By
    ``"auto"`` some draw ahead where drawing takes a notable part of a step, and steps are shorter
    with them. What is drawn follows from its numbers alone, so that it is the same in any case.

    Args:
        draw: gives what belongs to a range of numbers of the source.
        wanted: threads.
        device: where it is drawn.

    Raises:
        SettingError: what is no number of threads.
    """

    def __init__(self, draw: Callable[[range], Any], wanted: Workers, device: torch.device) -> None:
        _check_workers(wanted)
        self._draw, self._wanted, self._device = draw, wanted, device
        self._source: Any = None
        self._workers: DrawWorkers | None = None
        self._alone: DrawTimes | None = None
        self._ahead: DrawTimes | None = None

    @contextmanager
    def training(self, source: Any) -> Iterator[None]:
        """A block in which threads may draw from a source; at its end there are none left.

        Raises:
            SettingError: threads are wanted, and the source does not say that it can bear them.
        """
        safe = self._wanted != 0 and threads_may_draw(source)
        if not safe and self._wanted not in (0, "auto"):
            accepted = f"0 or auto is needed: {type(source).__name__} does not say thread_safe=True"
            raise SettingError("draw_workers", self._wanted, accepted)
        self._source = source
        if safe and self._wanted == "auto":
            self._alone = DrawTimes()
        elif safe:
            self._workers = DrawWorkers(self._draw, int(self._wanted), self._device)
        try:
            yield
        finally:
            self._end()
            self._source = None

    def __call__(self, source: Any, numbers: range, later: Iterator[range]) -> Any:
        """What belongs to some numbers of a source; ``later`` are those that will be asked for.

        Raises:
            Exception: what drawing these very numbers raised, whichever thread did it.
        """
        if self._workers is not None and source is self._source:
            found = self._workers.take(numbers, list(islice(later, self._workers.ahead)))
            self._look_back()
            return found
        if self._alone is None:
            return self._draw(numbers)
        with self._alone.drawing():
            found = self._draw(numbers)
        self._decide()
        return found

    def _decide(self) -> None:
        """Start threads, once there is enough to decide by."""
        times = self._alone
        if times is None or not times.seen:
            return
        if not times.worth_a_try():
            self._alone = None
            return
        count = spare_processors()
        log.info(
            "batches are drawn ahead (%d threads): one takes %.0f ms, and the rest of a step %.0f",
            count, 1e3 * times.draw, 1e3 * times.rest,
        )  # fmt: skip
        self._workers, self._ahead = DrawWorkers(self._draw, count, self._device), DrawTimes()

    def _look_back(self) -> None:
        """End threads again that have not made steps shorter."""
        if self._alone is None or self._ahead is None:
            return
        self._ahead.took()
        if self._ahead.seen:
            if not self._ahead.saved(self._alone):
                log.info("batches are not drawn ahead any more: steps are not shorter for it")
                self._end()
            self._alone = self._ahead = None

    def _end(self) -> None:
        workers, self._workers = self._workers, None
        self._alone = self._ahead = None
        if workers is not None:
            workers.close()


def _check_workers(workers: object) -> None:
    """Refuse what is no number of threads.

    Raises:
        SettingError: names ``draw_workers``.
    """
    if isinstance(workers, str):
        if workers != "auto":
            raise SettingError("draw_workers", workers, "auto or a whole number is needed")
    else:
        check_whole("draw_workers", workers, 0, _MOST)
