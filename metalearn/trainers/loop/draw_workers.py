"""Threads that draw batches before the steps that need them, each by its numbers.

Axes: none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from metalearn.core.tree import leaves

__all__ = ["DrawWorkers"]


class DrawWorkers:
    """Draws by threads, a few batches ahead; what is drawn is what the caller would draw.

    Args:
        draw: gives what belongs to a range of numbers, by itself: several threads call it at once.
        count: threads, at least 1. At most one batch more than that is begun or waits.
        device: where batches are drawn. On a GPU copies and kernels of the draws go by a stream of
            their own, for which the steps' stream waits, and not the host.
    """

    def __init__(self, draw: Callable[[range], Any], count: int, device: torch.device) -> None:
        self._draw, self.count, self.ahead = draw, count, count + 1
        self._pool = ThreadPoolExecutor(count, "metalearn-draws")
        self._begun: dict[range, Future[tuple[Any, Any]]] = {}
        self._lane = _Lane(device) if device.type == "cuda" else None

    def take(self, numbers: range, later: Sequence[range]) -> Any:
        """What belongs to some numbers; what comes later is begun, and what else was is dropped.

        Raises:
            Exception: what drawing these very numbers raised, whenever that was.
        """
        wanted = [numbers, *later[: self.ahead]]
        for dropped in self._begun.keys() - set(wanted):
            self._begun.pop(dropped).cancel()
        for each in wanted:
            if each not in self._begun:
                self._begun[each] = self._pool.submit(self._drawn, each)
        found, event = self._begun.pop(numbers).result()
        if self._lane is not None:
            self._lane.hand_over(found, event)
        return found

    def drop(self) -> None:
        """Forget what was begun."""
        for begun in self._begun.values():
            begun.cancel()
        self._begun.clear()

    def close(self) -> None:
        """End the threads; what is being drawn is waited for."""
        self.drop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _drawn(self, numbers: range) -> tuple[Any, Any]:
        if self._lane is None:
            return self._draw(numbers), None
        with self._lane.beside():
            return self._draw(numbers), self._lane.reached()


class _Lane:
    """A stream of a GPU beside that of the steps."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def beside(self) -> Iterator[None]:
        """A block whose work goes by this stream."""
        with torch.cuda.stream(self._stream):
            yield

    def reached(self) -> Any:
        """What marks all that this stream was given so far."""
        return self._stream.record_event()

    def hand_over(self, values: Any, event: Any) -> None:
        """Have the steps' stream wait for values, whose memory stays theirs until it is done."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        for value in (*leaves(values), getattr(values, "class_ids", None)):
            if isinstance(value, Tensor) and value.device.type == self._device.type:
                value.record_stream(current)
