"""Draws that cannot be drawn again, such as secure noise, held to their law.

Bounds are of six standard deviations of what is estimated, so that a right law fails in one run of
five hundred million: a bound chosen by eye fails now and then, or never where it should.
"""

from __future__ import annotations

import math
from typing import Any

import torch

__all__ = ["assert_normal_spread"]

_DEVIATIONS = 6


def assert_normal_spread(values: Any, sigma: float, *, centred: bool = True) -> None:
    """Independent draws have a standard deviation σ, and a mean of 0 where they are ``centred``.

    Of n normal draws s/σ − 1 spreads by 1/√(2n), and the mean by σ/√n.
    """
    drawn = torch.as_tensor(values, dtype=torch.float64).flatten()
    count = len(drawn)
    away = float(drawn.std()) / sigma - 1
    assert abs(away) < _DEVIATIONS / math.sqrt(2 * count), (away, count)
    if centred:
        assert abs(float(drawn.mean())) < _DEVIATIONS * sigma / math.sqrt(count)
