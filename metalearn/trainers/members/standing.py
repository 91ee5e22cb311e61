"""Which of M networks are trained, worked out anew only where that has changed.

Axes: M members, or 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

__all__ = ["Standing"]


class Standing:
    """What follows from which networks are still trained, and which by this process.

    Every step asks for it several times, and it changes a few times in a training.

    Args:
        active: ``[M]``, whether a network is still trained.
        own: ``[M]``, whether it is trained by this process, where others train the rest.

    Attributes:
        trained: indices of those that are trained by this process.
        whole: whether these are all that it has.
        stepped: ``[M]``: those that an update changes; of others' it does not matter what becomes.
        over: whether no network is stepped any more.
    """

    def __init__(self, active: Tensor, own: Tensor) -> None:
        self._active, self._own = active.clone(), own.clone()
        self.trained: list[int] = (active & own).nonzero().flatten().tolist()
        self.whole = len(self.trained) == int(own.sum())
        self.stepped = active | ~own
        self.over = not bool(self.stepped.any())

    def lost(self, losses: Sequence[float], norms: Sequence[float]) -> dict[int, str]:
        """Those trained whose loss or norm ``[M]`` is not finite, with both in words."""
        return {
            index: f"loss {losses[index]:g} and gradient norm {norms[index]:g}"
            for index in self.trained
            if not (math.isfinite(losses[index]) and math.isfinite(norms[index]))
        }

    def shown(self, losses: Sequence[float], norms: Sequence[float]) -> tuple[float, float]:
        """Mean loss and median norm of those trained; NaN where none is."""
        if not self.trained:
            return math.nan, math.nan
        middle = sorted(norms[index] for index in self.trained)[(len(self.trained) - 1) // 2]
        return sum(losses[index] for index in self.trained) / len(self.trained), middle

    def holds(self, active: Tensor, own: Tensor) -> bool:
        """Whether nothing has changed."""
        return self._active.equal(active) and self._own.equal(own)
