"""Dots, intervals and labels of runs side by side are where the numbers say."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from metalearn.tracking import ComparedNumber, comparison_figure

SEEDS = ComparedNumber(0.5, 0.3, 0.7, "seeds", (0.4, 0.6))
ALONE = ComparedNumber(0.8, 0.75, 0.85, "tests", (0.8,))
BARE = ComparedNumber(0.9, math.nan, math.nan, "", (0.9,))


def drawn(figure: Figure) -> None:
    FigureCanvasAgg(figure).draw()


def segments(figure: Figure, panel: int = 0) -> list[tuple[float, float]]:
    """Ends of the intervals that are drawn."""
    lines = [line.get_xdata() for line in figure.axes[panel].lines]
    found = [(float(x[0]), float(x[1])) for x in lines if len(x) == 2 and x[0] != x[1]]
    return [ends for ends in found if ends != (0.0, 1.0)]  # which part rows


def test_dots_and_intervals_are_those_of_the_numbers() -> None:
    figure = comparison_figure(
        ["a", "b", "c", "d"],
        {"test/accuracy": [SEEDS, ALONE, BARE, None]},
        title="t",
        percent=["test/accuracy"],
    )
    drawn(figure)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "test/accuracy (%)"
    intervals = [ends for ends in segments(figure) if ends != (40.0, 60.0)]
    assert np.allclose(intervals, [(30, 70), (75, 85)])
    means = [line.get_xdata()[0] for line in axes.lines if line.get_markersize() == 7]
    assert means == pytest.approx([50, 80, 90])
    places = [line.get_ydata()[0] for line in axes.lines if line.get_markersize() == 7]
    assert places == sorted(places) and axes.yaxis_inverted()
    assert [text.get_text() for text in axes.texts if text.get_text() == "–"] == ["–"]


def test_labels_are_whole_and_stand_in_their_row() -> None:
    names = ["maml.inner_lr=0.01, " * 20 + "end", r"$\frac{x}$ as it is"]
    figure = comparison_figure(names, {"a": [BARE, BARE], "b": [SEEDS, None]}, title="t")
    drawn(figure)
    labels = [text for text in figure.axes[0].texts if isinstance(text, Annotation)]
    shown = [re.sub(r"\s+", " ", label.get_text()) for label in labels]
    assert shown == [" ".join(name.split()) for name in names]
    width = figure.bbox.width
    boxes = [label.get_window_extent() for label in labels]
    assert all(box.x0 >= 0 and box.x1 <= width for box in boxes)
    assert boxes[0].y0 > boxes[1].y1
    for box, line in zip(boxes, [li for li in figure.axes[0].lines if li.get_markersize() == 7]):
        at = figure.axes[0].transData.transform((0.9, line.get_ydata()[0]))
        assert at[1] < box.y0  # the dot is below its label


def test_kinds_of_intervals_differ_in_more_than_colour() -> None:
    figure = comparison_figure(["a", "b", "c"], {"n": [SEEDS, ALONE, BARE]}, title="t")
    (legend,) = figure.legends
    looks = {(h.get_marker(), h.get_linestyle()) for h in legend.legend_handles}
    assert len(looks) == len(legend.get_texts()) == 4
    assert [text.get_text() for text in legend.get_texts()][3] == "each seed"


def test_one_far_interval_leaves_room_for_the_rest() -> None:
    wide = ComparedNumber(1.1, -1e6, 1e6, "seeds", (1.0, 1.2))
    figure = comparison_figure(["a", "b"], {"n": [wide, BARE]}, title="t")
    drawn(figure)
    low, high = figure.axes[0].get_xlim()
    assert high - low < 5
    assert {"<", ">"} <= {line.get_marker() for line in figure.axes[0].lines}
    assert any("goes on" in text.get_text() for text in figure.legends[0].get_texts())
    decades = [ComparedNumber(10.0**n, -5.0, 10.0**n, "seeds", (1.0,)) for n in range(6)]
    figure = comparison_figure(list("abcdef"), {"n": decades}, title="t")
    drawn(figure)
    assert figure.axes[0].get_xscale() == "log" and figure.axes[0].get_xlim()[0] > 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, -1e300, 0.0, 1e-320])
def test_every_number_can_be_drawn(value: float) -> None:
    numbers = [ComparedNumber(value, value, value, "seeds", (value, value)), SEEDS, None]
    drawn(comparison_figure(["a", "b", "c"], {"n": numbers}, title="t"))
    drawn(comparison_figure(["a"], {"n": numbers[:1], "m": [None]}, title=""))


def test_what_does_not_fit_is_refused() -> None:
    for rows, numbers in (([], {"n": []}), (["a"], {}), (["a"], {"n": []})):
        with pytest.raises(ValueError, match="comparison_figure: rows"):
            comparison_figure(rows, numbers, title="t")
