"""What leaving out the most helpful examples did to targets, by each method, as a figure.

Axes: R targets, K counts of examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from metalearn.tracking.attribution_figures import shortened
from metalearn.tracking.style import CYCLE, GREY, MARKERS, legend_below, numpy_of, panels

__all__ = ["leave_k_out_figure"]

_CHANCE: dict[str, Any] = {"color": GREY, "marker": "o", "ls": (0, (4, 3))}


def leave_k_out_figure(
    counts: Sequence[int],
    changes: Mapping[str, Tensor],
    shares: Mapping[str, Tensor],
    *,
    chance: str,
    title: str,
) -> Figure:
    """How losses rise, and how many predictions flip, with the number of examples left out.

    Args:
        counts: K numbers of examples.
        changes: method to ``[R, K]``, the loss without them minus with; the mean is drawn.
        shares: method to ``[K]``, of the predictions that flip; none in regression.
        chance: which of them were drawn by chance; grey and dashed.
        title: stands above.
    """
    figure, column = panels(title, 1 + bool(shares))
    order = np.argsort(counts)
    places = np.asarray(counts, dtype=float)[order]
    methods = [name for name in changes if name != chance]
    for name, values in changes.items():
        by_chance = name == chance
        look = _look(methods.index(name)) if not by_chance else _CHANCE
        label = "by chance" if by_chance else shortened(name)
        column[0].plot(places, numpy_of(values).mean(0)[order], lw=2, ms=6, label=label, **look)
        if shares:
            flipped = 100 * numpy_of(shares[name])[order]
            column[-1].plot(places, flipped, lw=2, ms=6, **look)
    column[0].axhline(0, color=GREY, lw=1)
    column[0].set_ylabel("rise of the target's loss")
    if shares:
        column[-1].set_ylabel("predictions that flip (%)")
        column[-1].set_ylim(bottom=0)
    for axes in column:
        axes.set_xscale("log")
        axes.set_xticks(places, [str(int(place)) for place in places])
        axes.minorticks_off()
    column[-1].set_xlabel("examples left out, the most helpful of each target")
    legend_below(figure, columns=4)
    return figure


def _look(number: int) -> dict[str, Any]:
    """Colour, mark and line of a method, other ones where colours begin anew."""
    turn, place = divmod(number, len(CYCLE))
    mark = MARKERS[(place + turn) % len(MARKERS)]
    return {"color": CYCLE[place], "marker": mark, "ls": ("-", ":", "-.")[turn % 3]}
