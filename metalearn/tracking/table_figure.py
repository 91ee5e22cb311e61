"""A table as a picture, for dashboards that show pictures and curves alone.

Axes: R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from metalearn.tracking.style import DPI, FONT, GREY, WIDTH

__all__ = ["table_figure"]

_LINE, _LETTER, _GAP, _SIZE = 0.2, 0.077, 0.16, 9.5  # inches; points


def table_figure(heads: Sequence[str], rows: Sequence[Sequence[str]], *, title: str) -> Figure:
    """Rows of texts below their heads; all columns but the first two stand to the right.

    Args:
        heads: of the columns.
        rows: ``[R]``, each with as many texts.
        title: stands above.

    Raises:
        ValueError: no row, or one with another number of texts.
    """
    if not rows or any(len(row) != len(heads) for row in rows):
        raise ValueError("table_figure: rows with a text for each head are needed")
    widths = [_GAP + _LETTER * max(map(len, column)) for column in zip(heads, *rows)]
    wide, tall = max(WIDTH, sum(widths) + _GAP), _LINE * (len(rows) + 3)
    figure = Figure(figsize=(wide, tall), dpi=DPI)
    look: dict[str, Any] = {"fontsize": _SIZE, "va": "top", "family": FONT, "parse_math": False}
    figure.text(_GAP / 2 / wide, 1 - 0.4 * _LINE / tall, title, **{**look, "fontsize": 11})
    for number, row in enumerate((heads, *rows)):
        top, left = 1 - _LINE * (number + 1.9) / tall, _GAP / 2
        for place, (text, width) in enumerate(zip(row, widths)):
            right = place > 1
            x = (left + width - _GAP / 2 if right else left) / wide
            colour = GREY if not number else "black"
            figure.text(x, top, text, ha="right" if right else "left", color=colour, **look)
            left += width
    return figure
