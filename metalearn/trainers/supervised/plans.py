"""What is decided once in a training on labelled data."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SamplePlan"]


@dataclass(frozen=True)
class SamplePlan:
    """How clipped gradients are taken."""

    chunk_size: int | None
    """Samples at a time; None is all."""
    note: str = "as set"

    def __str__(self) -> str:
        """One line for a log."""
        size = "all" if self.chunk_size is None else str(self.chunk_size)
        return f"per-sample gradients: {size} samples at a time; {self.note}"
