"""Shares as people read them, alike wherever they are shown; in JSON they stay fractions."""

from __future__ import annotations

import math

__all__ = ["is_accuracy", "percent"]


def percent(share: float) -> str:
    """``84.6 %`` of 0.846; ``NaN`` where the share is not known."""
    return "NaN" if math.isnan(share) else f"{100 * share:.1f} %"


def is_accuracy(name: str) -> bool:
    """Whether a number of that name, as ``validation/accuracy_after``, is a share of right answers.

    Args:
        name: with or without the place that it belongs to.
    """
    return "accuracy" in name.rpartition("/")[2]
