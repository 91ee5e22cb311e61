"""Numbers as people read them, alike wherever they are shown; in JSON they stay as they are."""

from __future__ import annotations

import math

__all__ = ["NAN_MEANS", "decimals", "is_accuracy", "is_share", "percent"]

NAN_MEANS = (
    "NaN: this number is not defined here, or nothing finite was measured; of a loss, a score or a "
    "gradient that is alarming"
)
"""What is said below numbers of which one is not known."""


def percent(share: float) -> str:
    """``84.6 %`` of 0.846; ``NaN`` where the share is not known."""
    return "NaN" if math.isnan(share) else f"{100 * share:.1f} %"


def decimals(value: float, form: str = ".4g") -> str:
    """A number in a format; ``NaN`` where it is not known."""
    return "NaN" if math.isnan(value) else format(value, form)


def is_accuracy(name: str) -> bool:
    """Whether a number of that name, as ``validation/accuracy_after``, is a share of right answers.

    Args:
        name: with or without the place that it belongs to.
    """
    return "accuracy" in name.rpartition("/")[2]


def is_share(name: str) -> bool:
    """Whether a number of that name is a share, which is shown in per cent."""
    return is_accuracy(name) or "coverage" in name.rpartition("/")[2]
