"""What mechanisms are made of, as an accountant has it.

Axes: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["GaussianEvent", "Neighbours"]

Neighbours = Literal["add_or_remove_one", "replace_one", "zero_out_one"]
"""Which data sets an adversary has to tell apart: one has an example more than the other; one
example is another one; or one example counts as nothing, its gradient as zero."""


@dataclass(frozen=True)
class GaussianEvent:
    """What an accountant composes: a sum of sensitivity 1, plus Gaussian noise, over a sample."""

    noise_multiplier: float
    """The standard deviation of the noise, in units of the sum's sensitivity."""
    rate: float = 1.0
    """The share of the examples that are summed; 1 is all of them."""
    without_replacement: bool = False
    """Whether so many are drawn, or each by itself."""
