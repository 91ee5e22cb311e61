"""Curves of a run's records, point by point."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from metalearn.tracking.run_curves import Curve, curve_figure, curves_of
from metalearn.tracking.style import BLUE, ORANGE

RECORDS = [
    {"step": 0, "validation/loss": 3.0, "validation/loss_low": 2.0, "validation/loss_high": 4.0},
    {"step": 1, "train/loss": 2.5, "speed/tasks_per_s": 10.0},
    {"step": 5, "train/loss": None, "speed/tasks_per_s": 12.0, "hyper/weights/mean": 0.5},
    {"step": 5, "train/loss": 1.5, "validation/loss": 1.0, "hyper/weights/mean": 0.75},
    {"step": 9, "hyper/weights/mean": 0.25, "best/loss": 1.0, "plain": 1.0, "train/\ud800": 1.0},
    {"step": 10, "plain": 2.0, "train/\ud800": 2.0, "train/" + "x" * 200: 1.0},
]


def test_points_stand_at_their_steps_the_last_of_each() -> None:
    curves = curves_of(RECORDS)
    assert set(curves) == {"loss", "speed/tasks_per_s", "hyper/weights/mean"}
    train, validation = curves["loss"]["train"], curves["loss"]["validation"]
    assert (train.steps.tolist(), train.values.tolist()) == ([1, 5], [2.5, 1.5])
    assert (validation.steps.tolist(), validation.values.tolist()) == ([0, 5], [3.0, 1.0])
    np.testing.assert_array_equal(validation.low, [2.0, math.nan])
    np.testing.assert_array_equal(validation.high, [4.0, math.nan])
    assert curves["hyper/weights/mean"][""].values.tolist() == [0.75, 0.25]


def test_parts_have_their_colour_and_name_even_alone() -> None:
    curve = Curve(*(np.array(a, dtype=float) for a in ([0, 1], [1, 2], [0.5, 1], [1.5, 3])))
    both = curve_figure("loss", {"train": curve, "validation": curve}).axes[0]
    assert [line.get_color() for line in both.lines] == [BLUE, ORANGE]
    assert [text.get_text() for text in both.get_legend().get_texts()] == ["training", "validation"]
    (alone,) = curve_figure("loss", {"validation": curve}).axes
    assert [text.get_text() for text in alone.get_legend().get_texts()] == ["validation"]
    (band,) = alone.collections
    assert tuple(band.get_facecolor()[0][:3]) == pytest.approx(to_rgba(ORANGE)[:3])
    assert band.get_paths()[0].get_extents().y0 == 0.5


@pytest.mark.parametrize(
    ("values", "high", "linear", "scale"),
    [
        ([1.0, 2.0], [2.0, 3.0], False, "linear"),
        ([1.0, 100.0], [2.0, 200.0], False, "log"),
        ([1.0, 2.0], [2.0, 40_000.0], False, "log"),  # a band that would flatten the line
        ([1.0, 1e-6], [1.0, 1e-6], True, "linear"),
        ([-1.0, 100.0], [0.0, 200.0], False, "linear"),
        ([1.0, math.inf], [1.0, 1e300], False, "linear"),
    ],
)
def test_the_scale_is_that_in_which_lines_can_be_read(
    values: list[float], high: list[float], linear: bool, scale: str
) -> None:
    curve = Curve(np.array([0.0, 1.0]), np.array(values), np.array(values), np.array(high))
    (axes,) = curve_figure("x", {"train": curve}, linear=linear).axes
    assert axes.get_yscale() == scale


def test_what_is_not_finite_is_marked() -> None:
    values = np.array([1.0, math.nan, math.inf, 2.0])
    nothing = np.full(4, math.nan)
    curve = Curve(np.arange(4.0), values, nothing, nothing)
    (axes,) = curve_figure("x", {"train": curve}).axes
    marks = [line for line in axes.lines if line.get_marker() == "X"]
    assert [line.get_xdata().tolist() for line in marks] == [[1.0, 2.0]]


def test_shares_are_in_per_cent() -> None:
    curve = Curve(
        *(np.array(a, dtype=float) for a in ([0, 1], [0.25, 0.5], [0.2, 0.4], [0.3, 0.6]))
    )
    (axes,) = curve_figure("accuracy", {"train": curve}, percent=True).axes
    assert axes.lines[0].get_ydata().tolist() == [25.0, 50.0]
    assert axes.get_title(loc="left") == "accuracy (%)"
