"""Omniglot: 1623 handwritten characters of 50 alphabets, each drawn by 20 people.

Axes: N = 32460 pictures, C = 1623 characters (classes), 20 drawings of each.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from metalearn.data.images import LabelledImages
from metalearn.data.locations import cache_folder, data_folder
from metalearn.data.omniglot_download import ARCHIVES, fetch
from metalearn.data.omniglot_layout import ALPHABETS, OmniglotSplit, class_names, divide
from metalearn.data.omniglot_source import fingerprint, parts_in, read_pictures
from metalearn.data.packed import kept_pack, read_pack
from metalearn.errors import DataError, SettingError
from metalearn.signatures import checked

__all__ = ["load_omniglot"]

_VERSION = 1  # of the pack: raise it when the reduction of the pictures or the order changes
_SIDE = 105
_PLACES = ("omniglot-py", "omniglot", "")


@checked
def load_omniglot(
    root: str | Path | None = None,
    *,
    split: OmniglotSplit = "random",
    validation_groups: int | None = None,
    image_size: int = 28,
    download: bool = True,
    cache: str | Path | None = None,
) -> LabelledImages:
    """All of Omniglot, white strokes on black, with its classes divided by ``split``.

    The 105x105 originals (black on white) are inverted and made smaller by exact area averaging
    (``area_average``). Classes are sorted by name, ``"Greek/character01"``, the pictures of a
    class by drawer: picture ``20 c + d`` is character c by drawer d, counted from 0.
    The splits are described at ``metalearn.data.omniglot_layout.divide``.

    Args:
        root: a folder with the official archives images_background.zip and images_evaluation.zip
            or with what they unpack to, or the folder above it. None: ``omniglot-py``,
            ``omniglot`` or nothing below ``data_folder()``.
        split: ``random``, ``alphabets``, ``small1`` or ``small2``.
        validation_groups: alphabets for validation, where alphabets are divided; None are five.
        image_size: side of a picture in pixels, 1 to 105.
        download: fetch the archives into ``data_folder()/omniglot-py`` where there are none.
        cache: folder of the packed pictures; None: ``cache_folder()``.

    Returns:
        ``images`` uint8 ``[32460, 1, image_size, image_size]``, groups = alphabets.

    Raises:
        SettingError: a setting that cannot work, or nothing at ``root``.
        DataError: the set is incomplete, corrupt, or cannot be had.

    Source: Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through
    probabilistic program induction", Science 350, 2015; github.com/brendenlake/omniglot.
    """
    if type(image_size) is not int or not 1 <= image_size <= _SIDE:
        raise SettingError("image_size", image_size, f"a whole number from 1 to {_SIDE} is needed")
    names = class_names({a: n for part in ALPHABETS.values() for a, n in part.items()})
    splits = divide(names, split, validation_groups)
    folder = cache_folder() if cache is None else Path(cache)
    images = torch.from_numpy(_pictures(names, root, image_size, download, folder))
    return LabelledImages(
        images=images.unsqueeze(1),
        labels=torch.arange(len(names)).repeat_interleave(len(images) // len(names)),
        class_names=names,
        class_groups=tuple(name.split("/")[0] for name in names),
        splits=splits,
    )


def _pictures(
    names: tuple[str, ...], root: str | Path | None, size: int, download: bool, cache: Path
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """``[N, size, size]`` in the order of the names, from the pack or from the source.

    A pack counts only for the very source that it was made from; where no source is named and
    none is there any more, the pack stands in for it.
    """
    path = cache / f"omniglot-{size}-v{_VERSION}.npz"
    parts = _find(data_folder()) if root is None else _find_root(Path(root).expanduser())
    if parts is None and read_pack(path) is None:
        parts = fetch(data_folder() / _PLACES[0], allowed=download)
    source = fingerprint(parts.values()) if parts is not None else None

    def made() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
        if parts is None:  # the pack alone was there, and went in between
            raise DataError(f"{path} cannot be read, and Omniglot itself is not there")
        by_name = {
            name: images
            for part, where in parts.items()
            for name, images in read_pictures(where, ALPHABETS[part], size).items()
        }
        return {"images": np.concatenate([by_name[name] for name in names])}

    return kept_pack(path, source, made).arrays["images"]


def _find(folder: Path) -> dict[str, Path] | None:
    """Both parts in the first of the usual places that has them."""
    for place in _PLACES:
        parts = parts_in(folder / place)
        if len(parts) == len(ALPHABETS):
            return parts
    return None


def _find_root(root: Path) -> dict[str, Path]:
    parts = _find(root)
    if parts is not None:
        return parts
    for place in _PLACES:
        there = parts_in(root / place)
        missing = [part for part in ALPHABETS if part not in there]
        if there:
            found = next(iter(there.values()))
            raise DataError(f"{found.parent}: {missing[0]}.zip is missing beside {found.name}")
    raise SettingError("root", str(root), f"a folder that holds {ARCHIVES} is needed")
