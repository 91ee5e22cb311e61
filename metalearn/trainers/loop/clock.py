"""What a training costs while it runs: samples a second, peak memory."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["Clock", "process_memory"]


class Clock:
    """Samples a second since the last restart, validation left out."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self._samples, self._spent, self._since = 0, 0.0, time.monotonic()

    def count(self, samples: int) -> None:
        """Add samples."""
        self._samples += samples

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count."""
        self._spent += time.monotonic() - self._since
        yield
        self._since = time.monotonic()

    def rate(self) -> float:
        """Samples a second."""
        spent = self._spent + time.monotonic() - self._since
        return self._samples / max(spent, 1e-9)


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
