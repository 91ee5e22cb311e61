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

from metalearn.data.lookalikes import pick_distinct, stray_ink
from metalearn.data.outlines import KNOBS, Face, bend, frame, rasterise, trace, uniforms
from metalearn.types import Split

__all__ = [
    "FACES",
    "LOOKALIKE",
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

LOOKALIKE = 0.04
"""Of letters closer than this only one becomes a class."""

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
    "HEBREW": ("Hebrew", "train"),
    "LISU": ("Lisu", "train"),
    "OLD": ("Old Italic", "train"),
    "CYRILLIC": ("Cyrillic", "validation"),
    "GREEK": ("Greek", "test"),
    "COPTIC": ("Coptic", "test"),
    "GEORGIAN": ("Georgian", "test"),
    "ARMENIAN": ("Armenian", "test"),
    "LAO": ("Lao", "test"),
}

SCRIPTS: Mapping[str, tuple[str, Split]] = MappingProxyType(_SCRIPTS)
"""First word of a letter's Unicode name: its script and split, in order of precedence."""

_MIN_DRAWINGS = 4
_MEASURE = 28


def open_faces(folder: Path) -> tuple[Face, ...]:
    """Open the twelve text faces, in the order of ``FACES``.

    Raises:
        DataError: a font file is missing from the folder, or is none.
    """
    return tuple(Face(folder / name) for name in FACES)


def choose_letters(faces: Sequence[Face]) -> list[int]:
    """Code points of the classes: by script in order of precedence, then by number.

    Letters (Lu, Ll, Lo) of ``SCRIPTS`` without a decomposition and in at least four different
    drawings; of letters that look alike the first one.
    """
    places = {script: place for place, script in enumerate(SCRIPTS)}
    everything: set[int] = set().union(*(face.codepoints for face in faces))
    letters = sorted(
        (letter for letter in everything if _is_plain_letter(letter)),
        key=lambda letter: (places[script_word(letter)], letter),
    )
    letters = [letter for letter in letters if len(_drawings(faces, letter)) >= _MIN_DRAWINGS]
    distances = letter_distances(faces, letters)
    return [letters[i] for i in pick_distinct(distances, threshold=LOOKALIKE)]


def letter_distances(faces: Sequence[Face], letters: Sequence[int]) -> NDArray[np.float64]:
    """Mean stray ink ``[L, L]`` over the faces of normal weight that both letters have.

    See :func:`metalearn.data.lookalikes.stray_ink`; infinite where no face has both letters.
    Pictures are undistorted and 28 pixels wide, so the choice of classes depends on no setting.
    """
    total = np.zeros((len(letters), len(letters)))
    shared = np.zeros((len(letters), len(letters)), dtype=np.int64)
    for name, face in zip(FACES, faces, strict=True):
        have = [i for i, letter in enumerate(letters) if letter in face]
        # Bold strokes fill the gaps that tell letters apart.
        if "Bold" not in name and have:
            pictures = [_plain(face, letters[i]) for i in have]
            total[np.ix_(have, have)] += stray_ink(np.concatenate(pictures))
            shared[np.ix_(have, have)] += 1
    return np.where(shared > 0, total / np.maximum(shared, 1), np.inf)


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
            knobs = np.stack([uniforms(key) for key in keys])
            pictures[mine] = rasterise(bend(points, knobs, size=size), size=size)
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
    )


def _plain(face: Face, codepoint: int) -> NDArray[np.uint8]:
    """The undistorted picture ``[1, height, width]`` that letters are compared by."""
    points = frame(trace(face.outline(codepoint)))
    return rasterise(bend(points, np.zeros((1, KNOBS)), size=_MEASURE), size=_MEASURE)


def _drawings(faces: Sequence[Face], codepoint: int) -> list[tuple[int, NDArray[np.float64]]]:
    """(Place of the face, framed points ``[S, K, 2]``) of each different drawing of a letter."""
    drawings: dict[bytes, tuple[int, NDArray[np.float64]]] = {}
    for place, face in enumerate(faces):
        if codepoint in face:
            points = frame(trace(face.outline(codepoint)))
            drawings.setdefault(points.tobytes(), (place, points))
    return list(drawings.values())
