"""What the bands and crosses of a run's curves are, said once below them.

Axes: none.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from metalearn.tracking.run_curves import Curve, drawable

__all__ = ["of_bands"]

_BANDS = {
    "tasks": "A band is the 95 % interval of the mean over the tasks of that step.",
    "members": "A band around the middle of members, or of several values, reaches from the "
    "lowest to the highest.",
    "lost": "A cross marks what was not finite.",
}


def of_bands(curves: Mapping[str, Mapping[str, Curve]]) -> str:
    """What bands and crosses are, as far as some are drawn."""
    every = [(name, curve) for name, parts in curves.items() for curve in parts.values()]
    banded = [name for name, curve in every if np.isfinite(drawable(curve.low)).any()]
    there = {
        "tasks": any(_over_tasks(name) for name in banded),
        "members": not all(_over_tasks(name) for name in banded),
        "lost": any(not np.isfinite(curve.values).all() for _, curve in every),
    }
    return " ".join(words for kind, words in _BANDS.items() if there[kind])


def _over_tasks(name: str) -> bool:
    return name.endswith(("_before", "_after")) and "member_" not in name
