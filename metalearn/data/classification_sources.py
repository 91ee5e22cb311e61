"""Classification data from each source, by name.

Axes: N samples, C classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from metalearn.data.classification import ClassificationData
from metalearn.data.division import check_fractions, stratified_splits
from metalearn.data.folder_reading import FolderReading, existing_folder
from metalearn.data.folder_tree import ClassFolder, find_classes
from metalearn.data.glyphs import load_glyphs
from metalearn.data.images import LabelledImages
from metalearn.data.omniglot import load_omniglot
from metalearn.errors import DataError, SettingError, check_whole
from metalearn.signatures import checked
from metalearn.types import Split

__all__ = ["digits_data", "folder_data", "glyphs_data", "omniglot_data"]


@checked
def digits_data(
    *, validation_fraction: float = 0.15, test_fraction: float = 0.25, seed: int = 0
) -> ClassificationData:
    """1797 handwritten digits of 8×8 pixels, which scikit-learn ships; no download.

    Pixels 0..16 are brought to 0..255: ``round(255 v / 16)``, ink bright on dark.

    Args:
        validation_fraction: share of each class for validation.
        test_fraction: share of each class for testing.
        seed: of the division; the same splits on any machine.

    Returns:
        inputs uint8 ``[1797, 1, 8, 8]``, classes ``"0"`` to ``"9"``.

    Raises:
        SettingError: a setting that cannot work.

    Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI, 1998 (test part).
    """
    from sklearn.datasets import load_digits  # slow to import

    digits = load_digits()
    pixels = (digits.images * (255 / 16) + 0.5).astype(np.uint8)
    targets = torch.from_numpy(digits.target.astype(np.int64))
    names = tuple(map(str, range(10)))
    splits = stratified_splits(
        targets,
        names=names,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=seed,
    )
    return ClassificationData(torch.from_numpy(pixels).unsqueeze(1), targets, names, splits)


@checked
def glyphs_data(
    *,
    image_size: int = 28,
    renderings: int = 24,
    classes: int | None = None,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> ClassificationData:
    """Letters of the world's scripts as classes, drawn from fonts of matplotlib; no download.

    Args:
        image_size: height and width in pixels, 8 to 128.
        renderings: pictures of a letter.
        classes: the first so many letters (Latin comes first); None for all.
        validation_fraction: share of each letter's pictures for validation.
        test_fraction: share of each letter's pictures for testing.
        seed: of the division.

    Raises:
        SettingError: a setting that cannot work.
        DataError: the fonts are missing, or a letter has too few pictures for three parts.
    """
    check_fractions(validation_fraction, test_fraction)
    images = load_glyphs(image_size=image_size, renderings=renderings)
    return _divided(images, classes, validation_fraction, test_fraction, seed)


@checked
def omniglot_data(
    *,
    root: str | Path | None = None,
    image_size: int = 28,
    classes: int | None = None,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    seed: int = 0,
    download: bool = True,
) -> ClassificationData:
    """Handwritten characters of 50 alphabets as classes, 20 drawings each (Lake et al., 2015).

    Args:
        root: folder of the archives; None looks under ``METALEARN_DATA``, then downloads.
        image_size: height and width in pixels, 1 to 105.
        classes: the first so many of the 1623 characters, sorted by alphabet; None for all.
        validation_fraction: share of each character's drawings for validation.
        test_fraction: share of each character's drawings for testing.
        seed: of the division.
        download: whether to download what is not there.

    Raises:
        SettingError: a setting that cannot work.
        DataError: the set is missing, incomplete or corrupt.
    """
    check_fractions(validation_fraction, test_fraction)
    images = load_omniglot(root, image_size=image_size, download=download)
    return _divided(images, classes, validation_fraction, test_fraction, seed)


@checked
def folder_data(
    root: str | Path,
    *,
    image_size: int = 28,
    channels: Literal[1, 3] = 3,
    invert: bool = False,
    on_corrupt: Literal["refuse", "skip"] = "refuse",
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> ClassificationData:
    """Pictures of your own: ``root/class/*``, or ``root/{train,validation,test}/class/*``.

    Without folders train, validation (or val) and test the pictures of each class are divided;
    with them those are the splits. Read is what `metalearn.data.load_folder` reads.

    Args:
        root: the folder.
        image_size: height and width in pixels; the largest centred square is brought to it.
        channels: 1 for grey, 3 for colour.
        invert: swap light and dark.
        on_corrupt: ``"refuse"`` or ``"skip"`` files that cannot be read.
        validation_fraction: share of each class for validation; not used with named splits.
        test_fraction: share of each class for testing; not used with named splits.
        seed: of the division; not used with named splits.

    Raises:
        SettingError: a setting that cannot work, or no folder at ``root``.
        DataError: no pictures, unreadable pictures, a class with too few of them, a class of
            validation or test that training lacks.
    """
    reading = FolderReading(image_size, channels, on_corrupt, invert)
    check_fractions(validation_fraction, test_fraction)
    root = existing_folder(root)
    folders = find_classes(root, shared=True)
    names = tuple(dict.fromkeys(folder.name for folder in folders))
    _check_names(root, folders, names)
    images, labels = reading.read(root, folders)
    targets = torch.tensor([names.index(folder.name) for folder in folders])[labels]
    if folders[0].split:
        home = [get_args(Split).index(folder.split) for folder in folders]
        parts = torch.tensor(home)[labels]
        splits = {split: torch.where(parts == i)[0] for i, split in enumerate(get_args(Split))}
    else:
        splits = stratified_splits(
            targets,
            names=names,
            validation_fraction=validation_fraction,
            test_fraction=test_fraction,
            seed=seed,
        )
    return ClassificationData(images, targets, names, splits)


def _divided(
    data: LabelledImages, classes: int | None, validation: float, test: float, seed: int
) -> ClassificationData:
    """The first ``classes`` classes of a data set, pictures of each divided into splits."""
    count = len(data.class_names)
    if classes is not None:
        check_whole("classes", classes, 2)
        if classes > count:
            accepted = f"the data have {count} classes, so at most as many are accepted"
            raise SettingError("classes", classes, accepted)
    names = data.class_names[:classes]
    chosen = data.labels < len(names)
    targets = data.labels[chosen]
    splits = stratified_splits(
        targets, names=names, validation_fraction=validation, test_fraction=test, seed=seed
    )
    return ClassificationData(data.images[chosen], targets, names, splits)


def _check_names(root: Path, folders: list[ClassFolder], names: tuple[str, ...]) -> None:
    if len(names) < 2:
        raise DataError(f"{root}: {names[0]} is the only class; at least two are needed")
    trained = {folder.name for folder in folders if folder.split in ("", "train")}
    for folder in folders:
        if folder.name not in trained:
            raise DataError(
                f"{root}: the class {folder.name} stands in {folder.split} but not in train"
            )
