"""The processes that share a step: where their gradients are summed.

Axes: M members, or 1.
"""

from __future__ import annotations

from typing import Protocol

from metalearn.trainers.loop.step import StepGradient

__all__ = ["OneRank", "Ranks"]


class Ranks(Protocol):
    """R processes that take the same step on parts of its batch."""

    rank: int
    """Of this process, from 0."""
    count: int
    """R."""

    def reduce(self, gradient: StepGradient) -> StepGradient:
        """Add up sums and counts of all ranks, for every rank alike."""


class OneRank:
    """A single process, whose sums are those of all."""

    rank = 0
    count = 1

    def reduce(self, gradient: StepGradient) -> StepGradient:
        """The gradient as it is."""
        return gradient
