"""Numbers that come step by step, kept in few tensors.

Axes: K steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["StepSeries"]

_LOOSE = 128  # values that wait to be packed


class StepSeries:
    """Values of one shape, ``[...]``, a step after another.

    A tensor of one number takes some hundred times the memory of the number, and holds on to the
    storage that it is a view of; so values are copied into tensors of many.

    Args:
        parts: what `parts` gave, to go on from.
    """

    def __init__(self, parts: Sequence[Tensor] = ()) -> None:
        self._packed, self._loose = list(parts), list[Tensor]()

    def append(self, value: Tensor) -> None:
        """Add the value of the next step."""
        self._loose.append(value)
        if len(self._loose) == _LOOSE:
            self._pack()

    def parts(self) -> list[Tensor]:
        """All values, ``[..., k]`` in each tensor."""
        self._pack()
        return list(self._packed)

    def stacked(self) -> Tensor:
        """``[..., K]``, of at least one step."""
        return torch.cat(self.parts(), -1)

    def _pack(self) -> None:
        if self._loose:
            self._packed.append(torch.stack(self._loose, -1))
            self._loose.clear()
