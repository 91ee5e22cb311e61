"""Letters of the world's scripts, drawn from fonts that are already there: nothing to download.

Axes: L letters (classes), R pictures of a letter, N = L·R pictures, [channels, height, width].

What stands in the data set:

- Letters (Unicode categories Lu, Ll, Lo) without a decomposition, so no accented variants,
  in at least four different drawings among the twelve DejaVu text faces of matplotlib.
- Each letter has equally many pictures, dealt to its drawings in turn; drawings that agree to
  the last point (a letter that is the same in two faces) count once. Letters are centred, their
  longer side set to a common length, then turned, stretched, sheared, bent and shifted a little.
- Look-alikes (A of Latin, Cyrillic and Greek; o and O once their size is set equal) are one class:
  the first one stays, training before validation before test. Distance: the share of ink that
  finds no ink of the other within a pixel, in undistorted pictures, that a third of the faces
  stay within; the bound 0.0275 was set by looking. Below it lie letters that differ in a dot, a
  notch or a serif. A few that the measure misses are left out by hand.
- Splits share no script. Training: Latin, Canadian syllabics, Arabic, Lisu, Old Italic.
  Validation: Cyrillic. Test: Greek, Coptic, Georgian, Armenian, Lao, Hebrew. Training is large
  and varied; test scripts have shapes of their own.
"""

from __future__ import annotations

import hashlib
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from metalearn.data.glyph_letters import (
    FACES,
    SCRIPTS,
    VERSION,
    choose_letters,
    draw_letter,
    open_faces,
    script_word,
)
from metalearn.data.images import LabelledImages
from metalearn.data.locations import cache_folder
from metalearn.data.packed import kept_pack
from metalearn.errors import DataError, SettingError
from metalearn.signatures import checked
from metalearn.stretches import stretch
from metalearn.types import Split

__all__ = ["FONTS_SHA256", "font_folder", "load_glyphs"]

FONTS_SHA256 = "9b1e90cc8b3ea5b0a3c10b20c6e66c10df6ff5f6c4f3fb18979672ae1ddedcfe"
"""Of the bytes of the twelve font files, one after another: DejaVu 2.35 as matplotlib ships it."""


@checked
def load_glyphs(
    *, image_size: int = 28, renderings: int = 24, cache: Path | None = None
) -> LabelledImages:
    """Letters of twelve scripts, ``renderings`` pictures of each, in splits that share no script.

    Pictures are uint8 ``[L·R, 1, image_size, image_size]``, ink 255 on 0, those of a letter side by
    side; classes are named ``"Greek/GREEK SMALL LETTER ALPHA"`` and grouped by script. Each picture
    depends on its letter, face, number and size alone, and is the same to the last bit on any
    machine. The first call draws for about ten seconds; later ones read a cache, and a damaged
    cache is drawn afresh. A ``UserWarning`` tells when the installed fonts are not DejaVu 2.35
    as matplotlib ships it, since classes and pictures can then differ from published ones.

    Args:
        image_size: pixels along a side, 8 to 128.
        renderings: pictures of a letter, 1 to 1000.
        cache: folder for the cache; ``None`` for ``metalearn.data.locations.cache_folder()``.

    Raises:
        SettingError: a size or number of renderings outside its range.
        DataError: matplotlib or its fonts are missing.
    """
    _check("image_size", image_size, 8, 128)
    _check("renderings", renderings, 1, 1000)
    folder = font_folder()
    fonts = _checksum(folder)
    source = f"glyphs {VERSION}, size {image_size}, renderings {renderings}, fonts {fonts}"
    name = f"glyphs-{VERSION}-{image_size}-{renderings}-{fonts[:8]}.npz"
    path = (cache_folder() if cache is None else Path(cache)) / name
    pack = kept_pack(path, source, lambda: _draw(folder, image_size, renderings))
    return _labelled(pack.arrays["letters"].tolist(), pack.arrays["images"])


def font_folder() -> Path:
    """Where matplotlib keeps its font files.

    Raises:
        DataError: matplotlib is not installed.
    """
    try:
        # Imported here since it takes a while, and drawing figures may not be wanted.
        import matplotlib
    except ImportError as error:
        raise DataError(
            "The glyph data set is drawn from the DejaVu fonts that matplotlib ships, "
            "and matplotlib is not installed: pip install matplotlib"
        ) from error
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _check(setting: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SettingError(setting, value, f"a whole number from {low} to {high} is needed")


def _checksum(folder: Path) -> str:
    """SHA-256 of the fonts; a warning where they are not the ones recorded here."""
    digest = hashlib.sha256()
    for name in FACES:
        try:
            digest.update((folder / name).read_bytes())
        except OSError as error:
            raise DataError(
                f"{folder / name}: this font of matplotlib cannot be read, and the glyph data "
                f"set is drawn from it ({error.strerror}); reinstall matplotlib"
            ) from error
    found = digest.hexdigest()
    if found != FONTS_SHA256:
        warnings.warn(
            f"The DejaVu fonts in {folder} are not those that metalearn's glyph data set was "
            f"recorded with (checksum {found[:8]}, recorded {FONTS_SHA256[:8]}): classes and "
            "pictures can differ from published ones",
            stacklevel=3,
        )
    return found


def _draw(folder: Path, size: int, renderings: int) -> dict[str, NDArray[np.generic]]:
    """Code points ``[L]`` and pictures ``[L, R, size, size]`` of all classes."""
    faces = open_faces(folder)
    letters = choose_letters(faces)
    numbers = range(renderings)
    images = []
    with stretch("drawing glyphs", len(letters), "letters") as tell:
        for letter in letters:
            images.append(draw_letter(faces, letter, numbers, size=size))
            tell(1)
    return {"letters": np.array(letters, dtype=np.int64), "images": np.stack(images)}


def _labelled(letters: Sequence[int], images: NDArray[np.uint8]) -> LabelledImages:
    count, renderings, size, _ = images.shape
    homes = [SCRIPTS[script_word(letter)] for letter in letters]
    names = [unicodedata.name(chr(letter)) for letter in letters]
    return LabelledImages(
        images=torch.from_numpy(images.reshape(count * renderings, 1, size, size)),
        labels=torch.arange(count).repeat_interleave(renderings),
        class_names=tuple(
            f"{script}/{name}" for (script, _), name in zip(homes, names, strict=True)
        ),
        class_groups=tuple(script for script, _ in homes),
        splits={
            split: tuple(i for i, (_, home) in enumerate(homes) if home == split)
            for split in get_args(Split)
        },
    )
