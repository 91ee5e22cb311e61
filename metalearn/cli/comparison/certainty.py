"""Whether a comparison tells which of its rows is better, in a sentence.

Axes: none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from metalearn.cli.comparison.rows import Row

__all__ = ["certainty"]


def certainty(rows: Sequence[Row], order: str) -> list[str]:
    """What seeds and intervals allow to be said of the first two rows, where a score orders them.

    Args:
        rows: of a comparison.
        order: what decided it, in a sentence.
    """
    done = [row for row in rows if row.state is None]
    if len(done) < 2 or (score := done[0].score) is None or score not in order:
        return []
    if any(len(row.runs) < 2 for row in done[:2]):
        return [
            "One seed tells nothing of chance: a difference between rows may be that of their "
            "seeds, and -m seed=0,1,2 gives intervals."
        ]
    first, second = (row.numbers[score] for row in done[:2])
    apart, width = abs(first.mean - second.mean), first.interval95 + second.interval95
    if not math.isfinite(apart + width):
        return []
    if apart <= width:
        return [f"Which of the first two rows is better is open: their intervals of {score} meet."]
    return [
        f"The first row is better than the second beyond chance: their intervals of {score} "
        "lie apart."
    ]
