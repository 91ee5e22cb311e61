"""mini-ImageNet and tiered-ImageNet from folders or Parquet files that a user has.

Axes: N pictures, C classes.
"""

from __future__ import annotations

from pathlib import Path

from metalearn.data.class_check import class_table
from metalearn.data.conversion import any_converted, converted
from metalearn.data.imagenet_classes import MINI_IMAGENET, TIERED_GROUPS, TIERED_IMAGENET
from metalearn.data.images import LabelledImages
from metalearn.data.listed_pictures import find_pictures
from metalearn.data.locations import cache_folder, data_folder
from metalearn.errors import DataError, SettingError, check_whole
from metalearn.signatures import checked

__all__ = ["load_mini_imagenet", "load_tiered_imagenet"]

_LARGEST_SIDE = 512
_LAYOUTS = "train.csv, val.csv and test.csv beside images, folders of classes, or Parquet files"


@checked
def load_mini_imagenet(
    root: str | Path | None = None, *, image_size: int = 84, cache: str | Path | None = None
) -> LabelledImages:
    """mini-ImageNet: 64, 16 and 20 classes of ImageNet, 600 pictures each, with Ravi's splits.

    ImageNet's terms let nobody else give it away, so it is not downloaded. Read are the layouts of
    `metalearn.data.listed_pictures.find_pictures`; classes go by their WordNet numbers, and have to
    be those of the splits. The pictures are converted once to an array in ``cache`` that is mapped
    into memory (`metalearn.data.conversion.converted`).

    Args:
        root: the folder. None: ``mini_imagenet`` or ``mini-imagenet`` below ``data_folder()``, or
            what was converted from it, should it be gone.
        image_size: side of a picture in pixels, 1 to 512.
        cache: folder of the array; None: ``cache_folder()``.

    Returns:
        ``images`` uint8 ``[N, 3, image_size, image_size]``, classes sorted by name, no groups.

    Raises:
        SettingError: a setting that cannot work.
        DataError: the set is not there, or another one; a picture cannot be read.

    Sources: Vinyals et al., "Matching networks for one shot learning", NeurIPS 2016; Ravi and
    Larochelle, "Optimization as a model for few-shot learning", ICLR 2017.
    """
    return _load("mini_imagenet", root, image_size, cache)


@checked
def load_tiered_imagenet(
    root: str | Path | None = None, *, image_size: int = 84, cache: str | Path | None = None
) -> LabelledImages:
    """tiered-ImageNet: 351, 97 and 160 classes of ImageNet in 20, 6 and 8 categories.

    All pictures of these classes belong to it, so that ImageNet's own training folder, with its
    1,000 folders of classes, will do. The rest is as `load_mini_imagenet` has it.

    Args:
        root: the folder. None: ``tiered_imagenet`` or ``tiered-imagenet`` below ``data_folder()``,
            or what was converted from it, should it be gone.
        image_size: side of a picture in pixels, 1 to 512.
        cache: folder of the array (16 GB for 84 pixels); None: ``cache_folder()``.

    Returns:
        ``images`` uint8 ``[N, 3, image_size, image_size]``, groups = categories.

    Raises:
        SettingError: a setting that cannot work.
        DataError: the set is not there, or another one; a picture cannot be read.

    Source: Ren et al., "Meta-learning for semi-supervised few-shot classification", ICLR 2018.
    """
    return _load("tiered_imagenet", root, image_size, cache)


def _load(
    name: str, root: str | Path | None, size: int, cache: str | Path | None
) -> LabelledImages:
    check_whole("image_size", size, 1, _LARGEST_SIDE)
    folder = cache_folder() if cache is None else Path(cache).expanduser()
    places = (
        [data_folder() / name, data_folder() / name.replace("_", "-")]
        if root is None
        else [Path(root).expanduser()]
    )
    tiered = name == "tiered_imagenet"
    title = f"{name.split('_')[0]}-ImageNet"
    for place in places:
        source = find_pictures(place)
        if source is not None:
            return converted(
                name,
                source,
                lambda listed, place=place: class_table(  # type: ignore[misc]
                    listed,
                    TIERED_IMAGENET if tiered else MINI_IMAGENET,
                    title=title,
                    place=place,
                    groups=TIERED_GROUPS if tiered else None,
                    others=tiered,
                ),
                size=size,
                folder=folder,
            )
    if root is not None:
        raise SettingError("root", str(root), f"a folder with {title} is needed: {_LAYOUTS}")
    earlier = any_converted(name, size, folder)
    if earlier is None:
        raise DataError(
            f"{title} is not in {places[0]}, and nobody may give it away: put what you have there "
            f"({_LAYOUTS}), or set root to its folder"
        )
    return earlier
