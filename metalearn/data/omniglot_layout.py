"""What Omniglot consists of, and how its classes are divided.

Axes: C = 1623 characters (classes), G = 50 alphabets (groups).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from metalearn.errors import DataError, SettingError

__all__ = ["ALPHABETS", "DRAWINGS", "OmniglotSplit", "class_names", "divide"]

OmniglotSplit = Literal["random", "alphabets", "small1", "small2"]

DRAWINGS = 20
"""Drawings of a character, one a drawer."""

ALPHABETS: Mapping[str, Mapping[str, int]] = {
    "images_background": {
        "Alphabet_of_the_Magi": 20, "Anglo-Saxon_Futhorc": 29, "Arcadian": 26, "Armenian": 41,
        "Asomtavruli_(Georgian)": 40, "Balinese": 24, "Bengali": 46,
        "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14, "Braille": 26, "Burmese_(Myanmar)": 34,
        "Cyrillic": 33, "Early_Aramaic": 22, "Futurama": 26, "Grantha": 43, "Greek": 24,
        "Gujarati": 48, "Hebrew": 22, "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16,
        "Japanese_(hiragana)": 52, "Japanese_(katakana)": 47, "Korean": 40, "Latin": 26,
        "Malay_(Jawi_-_Arabic)": 40, "Mkhedruli_(Georgian)": 41, "N_Ko": 33,
        "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14, "Sanskrit": 42,
        "Syriac_(Estrangelo)": 23, "Tagalog": 17, "Tifinagh": 55,
    },
    "images_evaluation": {
        "Angelic": 20, "Atemayar_Qelisayer": 26, "Atlantean": 26, "Aurek-Besh": 26, "Avesta": 26,
        "Ge_ez": 26, "Glagolitic": 45, "Gurmukhi": 45, "Kannada": 41, "Keble": 26,
        "Malayalam": 47, "Manipuri": 40, "Mongolian": 30, "Old_Church_Slavonic_(Cyrillic)": 45,
        "Oriya": 46, "Sylheti": 28, "Syriac_(Serto)": 23, "Tengwar": 25, "Tibetan": 42,
        "ULOG": 26,
    },
}  # fmt: skip
"""Archive to alphabet to its number of characters: 30/964 and 20/659."""

# Whole scripts that are kept for validation, and then those that may be; none is in a minimal set,
# so that the three splits by alphabet share them.
_VALIDATION = ("Armenian", "Bengali", "Burmese_(Myanmar)", "Hebrew", "Tifinagh")
_MINIMAL = {
    "small1": ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"),
    "small2": ("Greek", "Japanese_(katakana)", "Latin", "Sanskrit", "Tagalog"),
}
_TRAINED = {alphabet for several in _MINIMAL.values() for alphabet in several}
_HELD_OUT = (
    *_VALIDATION,
    *(a for a in ALPHABETS["images_background"] if a not in _TRAINED and a not in _VALIDATION),
)
_SHUFFLE_KEY = 1623
_TRAIN, _VALIDATE = 1100, 100
_DIGESTS = {
    "random": "a7268618f437914ef41969f8429ce8972533f1089b56b6c5d9524d786499e7f0",
    "alphabets": "c86654e0916b32212ceef0d21b0572c8adbc8a3687955ea55c350f40e115b811",
    "small1": "0e4c79d12e9a5d59e265381ff7bf25d6052a4b236d120750f6008c10fea4528f",
    "small2": "8f0736133c7d3b6b5b591cc6431d2d07efc138888fbda2b5eac0bc1ebe7f3ca6",
}


def class_names(alphabets: Mapping[str, int]) -> tuple[str, ...]:
    """Sorted names ``"Greek/character01"`` of the characters of some alphabets."""
    return tuple(
        sorted(
            f"{alphabet}/character{number:02d}"
            for alphabet, count in alphabets.items()
            for number in range(1, count + 1)
        )
    )


def divide(
    names: Sequence[str], split: OmniglotSplit, validation_groups: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Indices into the sorted class names for train, validation and test.

    - ``random``: one fixed shuffle of the 1623 characters; 1100 train, 100 validation, 423 test
      (Vinyals et al., 2016, and Finn et al., 2017, train on 1200 and test on 423).
    - ``alphabets``: test on the 20 evaluation alphabets; of the 30 background alphabets Armenian,
      Bengali, Burmese, Hebrew and Tifinagh (198 characters) are for validation, 25 (766) for
      training.
    - ``small1``, ``small2``: train on one of the two minimal sets of five background alphabets
      (Lake et al., 2015); validation and test as in ``alphabets``, the other alphabets unused.

    Args:
        names: of all classes, sorted.
        split: how they are divided.
        validation_groups: how many background alphabets are for validation, where alphabets are
            divided: the first so many of those five and then, by name, of the 17 others that are in
            no minimal set. 0 leaves the validation split out, and of ``alphabets`` all 30 are for
            training. None are the five.

    Raises:
        SettingError: an unknown split, more alphabets than there are.
        DataError: the lists differ from those that this version of the code was written with.
    """
    if split not in get_args(OmniglotSplit):
        raise SettingError("split", split, f"one of {', '.join(get_args(OmniglotSplit))} is needed")
    held_out = _held_out(split, validation_groups)
    parts = _shuffled(len(names)) if split == "random" else _by_alphabet(names, split, held_out)
    if validation_groups is not None:
        return {part: classes for part, classes in parts.items() if classes}
    listed = "\n".join(f"{part} {names[c]}" for part in parts for c in parts[part])
    if hashlib.sha256(listed.encode()).hexdigest() != _DIGESTS[split]:
        raise DataError(
            f"Omniglot's split {split!r} came out different from the fixed lists: "
            "this version of NumPy or the list of characters does not fit; results would "
            "not compare"
        )
    return parts


def _shuffled(count: int) -> dict[str, tuple[int, ...]]:
    # Raw bits of a counter-based generator stay the same in every version of NumPy;
    # its shuffles need not.
    raw = np.random.Philox(key=_SHUFFLE_KEY).random_raw(count)
    order = [int(c) for c in np.argsort(raw, kind="stable")]
    cuts = (0, _TRAIN, _TRAIN + _VALIDATE, count)
    return {
        part: tuple(sorted(order[cuts[i] : cuts[i + 1]]))
        for i, part in enumerate(("train", "validation", "test"))
    }


def _held_out(split: str, count: int | None) -> tuple[str, ...]:
    """The alphabets for validation.

    Raises:
        SettingError: a count where characters are divided, or out of range.
    """
    if count is None:
        return _VALIDATION
    if split == "random":
        accepted = "null is needed with split=random, which divides characters"
        raise SettingError("validation_groups", count, accepted)
    if type(count) is not int or not 0 <= count <= len(_HELD_OUT):
        accepted = f"a whole number from 0 to {len(_HELD_OUT)} is needed"
        raise SettingError("validation_groups", count, accepted)
    return _HELD_OUT[:count]


def _by_alphabet(
    names: Sequence[str], split: str, held_out: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    background = ALPHABETS["images_background"]
    train = _MINIMAL.get(split) or tuple(a for a in background if a not in held_out)
    wanted = {
        "train": train,
        "validation": held_out,
        "test": tuple(ALPHABETS["images_evaluation"]),
    }
    return {
        part: tuple(c for c, name in enumerate(names) if name.split("/")[0] in alphabets)
        for part, alphabets in wanted.items()
    }
