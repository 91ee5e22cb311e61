"""Which letters are classes, and how one of them is drawn.

Axes: L letters, R pictures of a letter, S curve segments of an outline, K points along a segment.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from metalearn.data.near_duplicates import pick_distinct, stray_ink
from metalearn.data.outlines import (
    DISTORTIONS,
    Face,
    centred,
    distort,
    distortions_of,
    points_along,
    rasterise,
)
from metalearn.types import Split

__all__ = [
    "FACES",
    "NEAR_DUPLICATE",
    "SCRIPTS",
    "VERSION",
    "choose_letters",
    "draw_letter",
    "letter_distances",
    "open_faces",
    "script_word",
]

VERSION = 1
"""Raised whenever a letter or a picture changes; part of every picture's key."""

NEAR_DUPLICATE = 0.0275
"""Of letters closer than this (see ``letter_distances``) only one becomes a class."""

_TWINS = frozenset(
    [
        # Cyrillic like a turned question mark, N and H with descender, r, d, K
        *(0x0480, 0x0481, 0x04C9, 0x04CA, 0x04F7, 0x0501, 0x051E, 0x051F),
        # Greek and Coptic like T with hook, X, C, f, a turned S
        *(0x03C4, 0x03C7, 0x03DA, 0x03DD, 0x03E8, 0x03E9),
        # Georgian like upsilon, turned L, U, S, Y, q, u
        *(0x10A0, 0x10A8, 0x10AE, 0x10BD, 0x10C3, 0x2D04, 0x2D0E),
        # Armenian like y, half H, l, 2; Hebrew like Y and a syllabic corner; Lao like n with foot
        *(0x053F, 0x0552, 0x056C, 0x0577, 0x05E5, 0x05E8, 0x0E81),
    ]
)
"""Validation and test letters that a person takes for a training letter, though a somewhat other
proportion or weight keeps them above ``NEAR_DUPLICATE``; found by looking at their neighbours."""

FACES = tuple(
    f"DejaVu{family}.ttf"
    for family in (
        *("Sans", "Sans-Oblique", "Sans-Bold", "Sans-BoldOblique"),
        *("Serif", "Serif-Italic", "Serif-Bold", "Serif-BoldItalic"),
        *("SansMono", "SansMono-Oblique", "SansMono-Bold", "SansMono-BoldOblique"),
    )
)
"""Font files; a face's place here is part of its pictures' keys."""

_SCRIPTS: dict[str, tuple[str, Split]] = {
    "LATIN": ("Latin", "train"),
    "CANADIAN": ("Canadian syllabics", "train"),
    "ARABIC": ("Arabic", "train"),
    "LISU": ("Lisu", "train"),
    "OLD": ("Old Italic", "train"),
    "CYRILLIC": ("Cyrillic", "validation"),
    "GREEK": ("Greek", "test"),
    "COPTIC": ("Coptic", "test"),
    "GEORGIAN": ("Georgian", "test"),
    "ARMENIAN": ("Armenian", "test"),
    "LAO": ("Lao", "test"),
    "HEBREW": ("Hebrew", "test"),
}

SCRIPTS: Mapping[str, tuple[str, Split]] = MappingProxyType(_SCRIPTS)
"""First word of a letter's Unicode name: its script and split, in order of precedence."""

_MIN_DRAWINGS = 4
_MIN_SIDE = 256
"""Font units (an eighth of an em): what is smaller is a dot, and would fill the picture."""

_MEASURE = 28
"""Pixels along a side of the pictures that letters are compared by."""


def open_faces(folder: Path) -> tuple[Face, ...]:
    """Open the twelve text faces, in the order of ``FACES``.

    Raises:
        DataError: a font file is missing from the folder, or is none.
    """
    return tuple(Face(folder / name) for name in FACES)


def choose_letters(faces: Sequence[Face]) -> list[int]:
    """Code points of the classes: by script in order of precedence, then by number.

    Letters (Lu, Ll, Lo) of ``SCRIPTS`` without a decomposition, in at least four different
    drawings and larger than a dot; of letters that look alike the first one.
    """
    places = {script: place for place, script in enumerate(SCRIPTS)}
    everything: set[int] = set().union(*(face.codepoints for face in faces))
    letters = sorted(
        (letter for letter in everything if _is_plain_letter(letter)),
        key=lambda letter: (places[script_word(letter)], letter),
    )
    letters = [letter for letter in letters if len(_drawings(faces, letter)) >= _MIN_DRAWINGS]
    letters = [letter for letter in letters if _side(faces, letter) >= _MIN_SIDE]
    distances = letter_distances(faces, letters)
    return [letters[i] for i in pick_distinct(distances, threshold=NEAR_DUPLICATE)]


def letter_distances(faces: Sequence[Face], letters: Sequence[int]) -> NDArray[np.float32]:
    """Stray ink ``[L, L]`` that a third of the faces of normal weight stay within.

    d(a, b) is the ⌈F/3⌉-th smallest stray ink over the F such faces that have both letters (see
    :func:`metalearn.data.near_duplicates.stray_ink`): letters that agree in a third of the faces
    are close, whatever an italic does to them. Infinite where no face has both. Pictures are
    undistorted and 28 pixels wide, so the choice of classes depends on no setting.
    """
    # Bold strokes fill the gaps that tell letters apart.
    plain = [face for name, face in zip(FACES, faces, strict=True) if "Bold" not in name]
    stray = np.full((len(plain), len(letters), len(letters)), np.inf, dtype=np.float32)
    for layer, face in zip(stray, plain, strict=True):
        have = [i for i, letter in enumerate(letters) if letter in face]
        if have:
            pictures = [_plain(face, letters[i]) for i in have]
            layer[np.ix_(have, have)] = stray_ink(np.concatenate(pictures))
    shared = np.isfinite(stray).sum(axis=0)
    stray.sort(axis=0)
    place = np.maximum((shared + 2) // 3 - 1, 0)
    distances: NDArray[np.float32] = np.take_along_axis(stray, place[None], axis=0)[0]
    return distances


def draw_letter(
    faces: Sequence[Face], codepoint: int, numbers: Sequence[int], *, size: int
) -> NDArray[np.uint8]:
    """Pictures ``[R, size, size]`` of one letter, by number.

    Picture r shows drawing r mod D (of the letter's D different ones), bent by random numbers
    that belong to (version, letter, face, r // D); so it does not depend on the other pictures.

    Raises:
        ValueError: no face has the letter.
    """
    drawings = _drawings(faces, codepoint)
    if not drawings:
        raise ValueError(f"U+{codepoint:04X}: none of the {len(faces)} faces has this letter")
    pictures = np.zeros((len(numbers), size, size), dtype=np.uint8)
    for turn, (face, points) in enumerate(drawings):
        mine = [i for i, number in enumerate(numbers) if number % len(drawings) == turn]
        if mine:
            rounds = [numbers[i] // len(drawings) for i in mine]
            keys = [(VERSION, codepoint << 32 | face << 16 | number) for number in rounds]
            distortions = np.stack([distortions_of(key) for key in keys])
            pictures[mine] = rasterise(distort(points, distortions, size=size), size=size)
    return pictures


def script_word(codepoint: int) -> str:
    """First word of a character's Unicode name; empty for a character without a name."""
    return unicodedata.name(chr(codepoint), "").partition(" ")[0]


def _is_plain_letter(codepoint: int) -> bool:
    character = chr(codepoint)
    return (
        unicodedata.category(character) in ("Lu", "Ll", "Lo")
        and not unicodedata.decomposition(character)
        and script_word(codepoint) in SCRIPTS
        and codepoint not in _TWINS
    )


def _side(faces: Sequence[Face], codepoint: int) -> float:
    """Longer side of a letter in font units, in the first face that has it."""
    points = next(face.outline(codepoint) for face in faces if codepoint in face)
    return float((points.max(axis=(0, 1)) - points.min(axis=(0, 1))).max())


def _plain(face: Face, codepoint: int) -> NDArray[np.uint8]:
    """The undistorted picture ``[1, height, width]`` that letters are compared by."""
    points = centred(points_along(face.outline(codepoint)))
    return rasterise(distort(points, np.zeros((1, DISTORTIONS)), size=_MEASURE), size=_MEASURE)


def _drawings(faces: Sequence[Face], codepoint: int) -> list[tuple[int, NDArray[np.float64]]]:
    """(Place of the face, framed points ``[S, K, 2]``) of each different drawing of a letter."""
    drawings: dict[bytes, tuple[int, NDArray[np.float64]]] = {}
    for place, face in enumerate(faces):
        if codepoint in face:
            points = centred(points_along(face.outline(codepoint)))
            drawings.setdefault(points.tobytes(), (place, points))
    return list(drawings.values())
