"""Whether the gradient that shaped runs is what runs do: held against two runs at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from metalearn.core import DirectionCheck

__all__ = ["GradientCheck"]

_EXACT = ("auto", "mixed", "reverse")
_TOLERANCES = {True: 0.05, False: 0.5}  # of exact methods, and of those that leave something out


@dataclass(frozen=True)
class GradientCheck:
    """A derivative of the outer loss along a random direction, by the gradient and by two runs."""

    method: str
    """Of the gradient."""
    predicted: float
    """By the gradient."""
    measured: float
    """By two runs, a little to either side."""
    error: float
    """Their difference over the gradient's size; see `metalearn.core.DirectionCheck`."""

    @classmethod
    def of(cls, method: str, found: DirectionCheck) -> GradientCheck:
        """What was found for a gradient by a method, of one outer loss."""
        return cls(method, float(found.predicted), float(found.measured), found.error)

    @property
    def warning(self) -> str:
        """Why what was learnt should not be trusted; empty where nothing speaks against it.

        Methods that leave something out may differ by half of the size: they have to point along
        the gradient, no more.
        """
        exact = self.method in _EXACT
        if math.isfinite(self.error) and self.error <= _TOLERANCES[exact]:
            return ""
        reason = (
            "runs are not smooth enough for it: a smooth activation such as gelu, shorter runs, a "
            "lower inner.lr or a truncation"
        )
        if not exact:
            reason = f"method={self.method} leaves out too much: method=auto"
        return f"{self}; {reason} may help, and what was learnt should not be trusted"

    def as_json(self) -> dict[str, Any]:
        """The numbers, and the warning."""
        return {**vars(self), "warning": self.warning}

    def __str__(self) -> str:
        return (
            f"along a random direction the gradient and two runs differ by {self.error:.2g} of its "
            "size"
        )
