"""What a training costs: time, samples a second, peak memory."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["Clock", "Spent", "process_memory"]


class Clock:
    """Samples a second since the last restart, validation left out."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self._pauses = 0
        self._samples, self._spent, self._since = 0, 0.0, time.monotonic()

    def count(self, samples: int) -> None:
        """Add samples."""
        self._samples += samples

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count; one may be in another."""
        if not self._pauses:
            self._spent += time.monotonic() - self._since
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            self._since = time.monotonic()

    def rate(self) -> float:
        """Samples a second."""
        spent = self._spent + time.monotonic() - self._since
        return self._samples / max(spent, 1e-9)


@dataclass
class Spent:
    """Time that a training takes, over all its resumptions.

    On a machine with other work the wall clock says how long one waited, the processor's how much
    was computed.
    """

    seconds: float = 0.0
    """Of the wall clock."""
    cpu_seconds: float = 0.0
    """Of the processor, in all threads; NaN for what an earlier release trained a part of."""

    def __post_init__(self) -> None:
        self._counts = False

    @contextmanager
    def counted(self) -> Iterator[None]:
        """What was spent before stands, and time in this block is counted."""
        self._wall = time.monotonic() - self.seconds
        self._cpu = time.process_time() - self.cpu_seconds
        self._counts = True
        try:
            yield
        finally:
            self.read()
            self._counts = False

    def read(self) -> None:
        """Take the clocks' word for it, inside the block.

        Not to be asked for at each step: of a process with many threads it may take a millisecond.
        """
        if self._counts:
            self.seconds = time.monotonic() - self._wall
            self.cpu_seconds = time.process_time() - self._cpu


def process_memory(device: torch.device) -> float:
    """Peak memory in GB: of a CUDA device, else of this process; NaN where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
        import sys
    except ImportError:  # Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
