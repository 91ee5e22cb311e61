"""Means over runs that differ in their seed alone.

Axes: S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from metalearn.errors import SettingError

__all__ = ["SeedMean", "mean_over_seeds", "student_quantile"]

_FEW = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060)
"""97.5 % quantiles of Student's t at 1 … 8 degrees of freedom."""
_NORMAL = 1.959963984540054


class SeedMean(NamedTuple):
    """A mean over S runs."""

    mean: float
    interval95: float
    """Half the width of the 95 % interval by Student's t; NaN of one run."""
    deviation: float
    """Standard deviation with divisor S − 1; NaN of one run."""


def mean_over_seeds(values: Sequence[float]) -> SeedMean:
    """Mean, t · s / √S with S − 1 degrees of freedom, and s.

    Raises:
        SettingError: no value.
    """
    if not values:
        raise SettingError("values", 0, "at least one run is needed")
    count = len(values)
    if count == 1:
        return SeedMean(float(values[0]), math.nan, math.nan)
    deviation = stdev(values)
    half = student_quantile(count - 1) * deviation / math.sqrt(count)
    return SeedMean(fmean(values), half, deviation)


def student_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, to 3e-4: of few degrees from a table.

    Beyond it is the expansion in 1/ν about the normal quantile z (Abramowitz and Stegun, "Handbook
    of Mathematical Functions", 26.7.5).
    """
    if degrees <= len(_FEW):
        return _FEW[degrees - 1]
    z = _NORMAL
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(sum(term / degrees**power for power, term in enumerate(terms)))
