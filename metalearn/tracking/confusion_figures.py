"""Pictures of what a learner confuses.

Axes: pictures [channels, height, width] in 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from metalearn.tracking.style import FONT, GREEN, GREY, RED

__all__ = ["ConfusedQuery", "confusion_figure"]

_PICTURE, _TEXT = 0.75, 3.2  # inches: a picture's width, the space of the names
_EXAMPLES = 3  # of a confusion that are shown


@dataclass(frozen=True)
class ConfusedQuery:
    """A query, and one support picture of its class and of the class it was taken for."""

    query: Tensor
    true: Tensor
    predicted: Tensor


def confusion_figure(rows: Sequence[tuple[str, Sequence[ConfusedQuery]]], *, title: str) -> Figure:
    """One row for each confusion: its name, and up to three queries beside what they look like.

    The query stands left (grey frame), then a support picture of its own class (green) and one of
    the class that it was taken for (red), all three of one task.

    Args:
        rows: name and queries of each confusion, at least one.
        title: stands above.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("rows: at least one confusion is needed")
    columns = 3 * min(_EXAMPLES, max(len(queries) for _, queries in rows))
    size = (_TEXT + _PICTURE * columns, 0.7 + _PICTURE * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=12)
    ratios = [_TEXT / _PICTURE, *[1] * columns]
    grid: Any = figure.subplots(len(rows), 1 + columns, squeeze=False, width_ratios=ratios)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (name, queries) in zip(grid, rows):
        style: Any = {"fontsize": 9, "fontfamily": FONT}
        line[0].text(0, 0.5, name, style, va="center", transform=line[0].transAxes)
        for number, found in enumerate(queries[:_EXAMPLES]):
            parts = ((found.query, GREY), (found.true, GREEN), (found.predicted, RED))
            for axes, (picture, colour) in zip(line[1 + 3 * number :], parts):
                _show(axes, picture, colour)
    return figure


def _show(axes: Any, picture: Tensor, colour: str) -> None:
    values = picture.detach().cpu().float().clamp(0, 1)
    shown = values.permute(1, 2, 0) if len(values) == 3 else values.mean(0)
    axes.set_axis_on()
    axes.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=2)
