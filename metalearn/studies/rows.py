"""What a study gives of one seed: rows of numbers, and what was chosen on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Rows", "percent"]


@dataclass
class Rows:
    """Numbers by row and column, in the order in which they came."""

    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    """By row, the settings that validation chose."""

    def add(self, row: str, chosen: str = "", /, **numbers: float) -> None:
        """Put numbers into a row, which may be there."""
        self.numbers.setdefault(row, {}).update(numbers)
        if chosen:
            self.chosen[row] = chosen

    @contextmanager
    def timed(self, row: str) -> Iterator[None]:
        """A block whose time of the processor is part of what a row cost, in seconds."""
        began = time.process_time()
        yield
        spent = self.numbers.setdefault(row, {})
        spent["seconds"] = spent.get("seconds", 0.0) + time.process_time() - began


def percent(share: float) -> float:
    """Of a share."""
    return 100 * float(share)
