"""Outlines to pictures: closed forms, frames, exact bytes.

Axes: N pictures, S segments, K points along a segment.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest

from metalearn.data.outlines import (
    DISTORTIONS,
    Face,
    centred,
    distort,
    distortions_of,
    points_along,
    rasterise,
)
from metalearn.errors import DataError

ROUND = [(0, 100), (0, 0), (100, 0), (200, 0), (200, 100), (200, 200), (100, 200), (0, 200)]
"""Four curves: points of the outline at even places, control points between."""


def _polygon(corners: list[tuple[float, float]]) -> np.ndarray:
    """Closed straight segments ``[S, 3, 2]`` through the corners."""
    points = np.array(corners, dtype=np.float64)
    following = np.roll(points, -1, axis=0)
    return np.stack([points, (points + following) / 2, following], axis=1)


def _blob() -> np.ndarray:
    """Four quadratic arcs of a rounded square with a square hole: an embedded letter o."""
    points = np.array([*ROUND, ROUND[0]], dtype=np.float64)
    arcs = np.stack([points[0:-1:2], points[1::2], points[2::2]], axis=1)
    return np.concatenate([arcs, _polygon([(60, 60), (60, 140), (140, 140), (140, 60)])])


def _box(low: float, high: float, *, clockwise: bool = False) -> np.ndarray:
    corners = [(low, low), (high, low), (high, high), (low, high)]
    return points_along(_polygon(corners[::-1] if clockwise else corners))


def test_a_square_on_the_pixel_grid_is_exact() -> None:
    picture = rasterise(_box(2, 6)[None], size=8)[0]
    expected = np.zeros((8, 8), dtype=np.uint8)
    expected[2:6, 2:6] = 255
    assert np.array_equal(picture, expected)


def test_partly_covered_pixels_are_grey_in_proportion() -> None:
    picture = rasterise(_box(2.5, 6)[None], size=8)[0]
    assert picture[3, 2] == 128 and picture[5, 2] == 64 and picture[3, 3] == 255


def test_a_ring_has_a_hole_only_when_its_contours_turn_opposite_ways() -> None:
    hole = rasterise(np.concatenate([_box(1, 7), _box(3, 5, clockwise=True)])[None], size=8)
    full = rasterise(np.concatenate([_box(1, 7), _box(3, 5)])[None], size=8)
    assert hole.sum() / 255 == 36 - 4 and full.sum() / 255 == 36


def test_overlapping_contours_are_filled_once() -> None:
    both = rasterise(np.concatenate([_box(1, 5), _box(3, 7)])[None], size=8)
    assert both.sum() / 255 == 16 + 16 - 4


def test_a_disc_has_its_area() -> None:
    angles = 2 * math.pi * np.arange(64) / 64
    disc = points_along(_polygon([(32 + 20 * math.cos(a), 32 + 20 * math.sin(a)) for a in angles]))
    area = rasterise(disc[None], size=64).sum() / 255
    assert area == pytest.approx(32 * 400 * math.sin(2 * math.pi / 64), rel=2e-3)


def test_up_is_up_and_what_sticks_out_is_cut_off() -> None:
    picture = rasterise(_box(4, 20)[None], size=8)[0]
    expected = np.zeros((8, 8), dtype=np.uint8)
    expected[:4, 4:] = 255
    assert np.array_equal(picture, expected)
    left = rasterise((_box(2, 6) - np.array([4.0, 0.0]))[None], size=8)[0]
    assert left.sum() / 255 == 2 * 4 and left[3, 0] == 255


def test_pictures_of_a_batch_do_not_mix() -> None:
    boxes = [_box(1, 4), _box(3, 7), _box(20, 30)]
    batch = rasterise(np.stack(boxes), size=8)
    for box, picture in zip(boxes, batch, strict=True):
        assert np.array_equal(rasterise(box[None], size=8)[0], picture)
    assert batch[2].max() == 0


def test_trace_meets_the_ends_and_the_middle_of_a_parabola() -> None:
    points = points_along(np.array([[[0.0, 0.0], [1.0, 2.0], [2.0, 0.0]]]))[0]
    assert points[0].tolist() == [0, 0] and points[-1].tolist() == [2, 0]
    assert points[2].tolist() == [1, 1]


def test_frame_centres_and_keeps_the_aspect() -> None:
    framed = centred(points_along(_polygon([(10, 10), (50, 10), (50, 30), (10, 30)])))
    assert framed.min(axis=(0, 1)).tolist() == [-1, -0.5]
    assert framed.max(axis=(0, 1)).tolist() == [1, 0.5]


def test_bending_without_knobs_only_places_the_letter() -> None:
    framed = centred(points_along(_blob()))
    placed = distort(framed, np.zeros((1, DISTORTIONS)), size=28)[0]
    np.testing.assert_allclose(placed, framed * 0.34 * 28 + 14, rtol=0, atol=1e-12)


def test_the_most_bent_letters_stay_inside_the_picture() -> None:
    corners = np.sign(np.stack([distortions_of((0, i)) for i in range(200)]))
    placed = distort(centred(points_along(_blob())), corners, size=28)
    assert placed.min() > 1 and placed.max() < 27


def test_contours_stay_closed_when_bent() -> None:
    placed = distort(centred(points_along(_blob())), distortions_of((0, 1))[None], size=28)[0]
    assert np.array_equal(placed[:3, -1], placed[1:4, 0])
    assert np.array_equal(placed[3, -1], placed[0, 0])


def test_uniforms_belong_to_their_key() -> None:
    numbers = np.concatenate([distortions_of((1, key)) for key in range(200)])
    assert numbers.min() >= -1 and numbers.max() < 1
    assert abs(numbers.mean()) < 0.05 and abs(numbers.var() - 1 / 3) < 0.02
    assert np.array_equal(distortions_of((1, 7)), numbers[7 * DISTORTIONS : 8 * DISTORTIONS])
    assert not np.array_equal(distortions_of((1, 7)), distortions_of((2, 7)))


def test_an_embedded_outline_gives_the_recorded_bytes() -> None:
    """Needs no font: a change here means that drawing, not a font, has changed."""
    distortions = np.stack([distortions_of((1, key)) for key in range(20)])
    pictures = rasterise(distort(centred(points_along(_blob())), distortions, size=28), size=28)
    digest = hashlib.sha256(pictures.tobytes()).hexdigest()
    assert digest == "b67db7a8d102e43add66363bb36b410d883a24644bb305ae27aca88d78eec29f"


@pytest.mark.parametrize("content", [None, b"", b"no font at all"])
def test_what_is_no_font_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "face.ttf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"face\.ttf: a TrueType font is needed here"):
        Face(path)
