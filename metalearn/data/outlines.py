"""Glyph outlines to pictures: reading a font, bending curves, filling them with ink.

Axes: S curve segments of an outline, K points along a segment, N pictures, E edges, H and W
pixels; the last axis 2 is (x right, y up).

Every operation on numbers is one that IEEE 754 fixes to the last bit (sum, product, quotient,
comparison, rounding), in an order that the code fixes: no matrix products, no sines, no float
reductions. The same outline therefore gives the same bytes on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from fontTools.pens.basePen import decomposeQuadraticSegment
from fontTools.pens.recordingPen import DecomposingRecordingPen
from fontTools.ttLib import TTFont, TTLibError
from numpy.typing import NDArray

from metalearn.errors import DataError

__all__ = [
    "DISTORTIONS",
    "Face",
    "centred",
    "distort",
    "distortions_of",
    "points_along",
    "rasterise",
]

Floats = NDArray[np.float64]

PIECES = 4
"""Straight pieces that a curve segment is cut into; a stroke is long, a picture small."""

SAMPLES = 4
"""Sampling points along each side of a pixel: 16 in all, so 17 levels of grey."""

DISTORTIONS = 20
"""Random numbers that one bent picture takes: 4 affine, 2 shift and 14 elastic ones."""

_FIRST_ELASTIC = 6


class Face:
    """One font file: which characters it has, and their outlines.

    Args:
        path: a TrueType file.

    Raises:
        DataError: the file is missing or is no font.
    """

    def __init__(self, path: Path) -> None:
        try:
            font = TTFont(BytesIO(path.read_bytes()), lazy=True)
            names: dict[int, str] = font.getBestCmap()
            self._glyphs: Any = font.getGlyphSet()
        except (OSError, TTLibError) as error:
            raise DataError(f"{path}: a TrueType font is needed here ({error})") from error
        # The box for missing characters is a glyph like any other.
        self._names = {code: name for code, name in names.items() if name != ".notdef"}
        self._outlines: dict[int, Floats] = {}

    @property
    def codepoints(self) -> Set[int]:
        """Characters that the face lists, blanks included."""
        return self._names.keys()

    def __contains__(self, codepoint: int) -> bool:
        """Whether the face has ink for this character."""
        return codepoint in self._names and len(self.outline(codepoint)) > 0

    def outline(self, codepoint: int) -> Floats:
        """Segments ``[S, 3, 2]`` (start, control, end) of quadratic curves, in font units.

        A straight line has its control point in its middle. ``S`` is 0 for a blank.

        Raises:
            KeyError: the face does not list the character.
        """
        if codepoint not in self._outlines:
            pen = DecomposingRecordingPen(self._glyphs)
            self._glyphs[self._names[codepoint]].draw(pen)
            segments = np.array(_segments(pen.value), dtype=np.float64)
            self._outlines[codepoint] = segments.reshape(-1, 3, 2)
        return self._outlines[codepoint]


def points_along(segments: Floats) -> Floats:
    """Points along quadratic curves: ``[S, 3, 2]`` to ``[S, K, 2]``, ends included.

    b(t) = (1-t)² start + 2t(1-t) control + t² end at t = 0, 1/4, ..., 1.
    """
    t = (np.arange(PIECES + 1) / PIECES)[None, :, None]
    start, control, end = (segments[:, None, i] for i in range(3))
    points: Floats = (1 - t) * (1 - t) * start + 2 * t * (1 - t) * control + t * t * end
    return points


def centred(points: Floats) -> Floats:
    """Centre points ``[..., S, K, 2]`` on their box; its longer side becomes 2, aspect kept."""
    low = points.min(axis=(-3, -2), keepdims=True)
    high = points.max(axis=(-3, -2), keepdims=True)
    side = (high - low).max(axis=-1, keepdims=True)
    framed: Floats = (2 * points - (low + high)) / side
    return framed


def distortions_of(key: tuple[int, int]) -> Floats:
    """``[KNOBS]`` numbers in [-1, 1) that belong to a key of two whole numbers.

    They come from the raw bits of Philox (whose stream NumPy keeps stable; its distributions it
    does not), so a picture depends on its own key alone.
    """
    raw = np.random.Philox(key=np.array(key, dtype=np.uint64)).random_raw(DISTORTIONS)
    numbers: Floats = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1
    return numbers


def distort(points: Floats, distortions: Floats, *, size: int) -> Floats:
    """Rotate, stretch, shear, bend and place an outline in a picture.

    Rotation within ±13°, stretch and shear within ±15%, a smooth elastic displacement (cubic
    polynomials) of a few percent of the letter; then the longer side is set to 60-76% of the
    picture and the middle is shifted by at most 7%, so ink keeps off the border.

    Args:
        points: ``[S, K, 2]`` in the unit frame (see :func:`centred`).
        distortions: ``[N, KNOBS]`` in [-1, 1]; zeros give the undistorted picture.
        size: pixels along a side.

    Returns:
        ``[N, S, K, 2]`` in pixels, y up, origin at the lower left corner.
    """
    k = distortions[:, :, None, None]
    x, y = points[None, ..., 0], points[None, ..., 1]
    dx, dy = _elastic(x, y, k[:, _FIRST_ELASTIC:])
    x, y = x + dx, y + dy
    # The half-angle form gives an exact rotation without a sine.
    half = 0.115 * k[:, 0]
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    stretch = 1 + 0.15 * k[:, 1]
    x, y = stretch * (x + 0.15 * k[:, 2] * y), y / stretch
    x, y = cosine * x - sine * y, sine * x + cosine * y
    placed = centred(np.stack([x, y], axis=-1))
    half_side = (0.34 + 0.04 * k[:, 3, :, :, None]) * size
    shift = 0.07 * size * np.stack([k[:, 4], k[:, 5]], axis=-1)
    result: Floats = half_side * placed + (size / 2 + shift)
    return result


def rasterise(points: Floats, *, size: int) -> NDArray[np.uint8]:
    """Fill closed outlines with ink: share of covered sampling points, 0..255.

    Non-zero winding, ``SAMPLES²`` points a pixel. What lies outside the picture is cut off.

    Args:
        points: ``[N, S, K, 2]`` in pixels, y up; the edges of a picture form closed loops.
        size: pixels along a side.

    Returns:
        ``[N, size, size]``, first row at the top.
    """
    count, side = len(points), size * SAMPLES
    # Sampling row j lies at j + 1/2 in these units; an edge holds the rows in [lower, upper).
    grid = points * SAMPLES - 0.5
    x0, x1 = grid[:, :, :-1, 0].ravel(), grid[:, :, 1:, 0].ravel()
    y0, y1 = grid[:, :, :-1, 1].ravel(), grid[:, :, 1:, 1].ravel()
    first = np.clip(np.ceil(np.minimum(y0, y1)), 0, side).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(y0, y1)), 0, side).astype(np.int64)
    rows = last - first
    edge = np.repeat(np.arange(len(rows)), rows)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows, rows) + first[edge]
    slope = (x1 - x0) / np.where(y1 == y0, 1.0, y1 - y0)
    crossing = x0[edge] + (row - y0[edge]) * slope[edge]
    column = np.clip(np.ceil(crossing), 0, side).astype(np.int64)
    picture = edge // max(1, len(rows) // max(1, count))
    cell = (picture * side + (side - 1 - row)) * (side + 1) + column
    # Sums of plus and minus one are exact in any order.
    turn = np.bincount(cell, np.where(y1 > y0, 1.0, -1.0)[edge], count * side * (side + 1))
    winding = np.cumsum(turn.astype(np.int16).reshape(count, side, side + 1), 2, dtype=np.int16)
    inside = (winding[..., :side] != 0).reshape(count, size, SAMPLES, size, SAMPLES)
    covered = inside.view(np.uint8).sum(axis=(2, 4), dtype=np.int64)
    grey: NDArray[np.uint8] = ((255 * covered + SAMPLES**2 // 2) // SAMPLES**2).astype(np.uint8)
    return grey


def _elastic(x: Floats, y: Floats, k: Floats) -> tuple[Floats, Floats]:
    """Displacements by the seven Chebyshev products of degree two and three."""
    xx, yy = 2 * x * x - 1, 2 * y * y - 1
    terms = (xx, x * y, yy, x * (2 * xx - 1), xx * y, x * yy, y * (2 * yy - 1))
    dx, dy = np.zeros_like(x * k[:, 0]), np.zeros_like(x * k[:, 0])
    for i, term in enumerate(terms):
        dx = dx + 0.05 * k[:, i] * term
        dy = dy + 0.05 * k[:, i + len(terms)] * term
    return dx, dy


def _segments(commands: Sequence[tuple[str, tuple[Any, ...]]]) -> list[tuple[Any, Any, Any]]:
    """(start, control, end) of every line and curve that a pen drew; contours are closed."""
    segments: list[tuple[Any, Any, Any]] = []
    start: Any = (0, 0)
    here: Any = start
    for command, points in commands:
        if command == "moveTo":
            start = here = points[0]
        elif command in ("lineTo", "closePath"):
            end = points[0] if points else start
            if end != here:
                segments.append((here, _middle(here, end), end))
            here = end
        elif command == "qCurveTo":
            if points[-1] is None:  # a contour of control points alone, without a moveTo
                start = here = _middle(points[-2], points[0])
                points = (*points[:-1], start)
            for control, end in decomposeQuadraticSegment(points):
                segments.append((here, control, end))
                here = end
    return segments


def _middle(a: Any, b: Any) -> tuple[float, float]:
    return (a[0] + b[0]) / 2, (a[1] + b[1]) / 2
