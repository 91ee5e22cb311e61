"""What the first of the ranks that share a private training draws for all.

Axes: none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metalearn.privacy import PrivacyAccount
from metalearn.ranks import Ranks

__all__ = ["drawn_by_the_first"]


def drawn_by_the_first(ranks: Ranks, account: PrivacyAccount, draw: Callable[[], Any]) -> Any:
    """What it draws, a plain value; all have its account after that, which it alone writes down.

    Args:
        ranks: that share the training.
        account: this rank's.
        draw: reserves in it what is drawn.
    """
    if ranks.count == 1:
        return draw()
    drawn, state = ranks.agreed([draw(), account.state()] if ranks.rank == 0 else None)
    if ranks.rank and state != account.state():
        account.load_state(state)
    return drawn
