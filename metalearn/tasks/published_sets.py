"""Few-shot tasks from the data sets that papers compare on, with their splits.

Each function loads a data set and hands it, with the settings of `FewShotTasks` (way, shot, query,
rotations, seed), to the episode sampler.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from metalearn.data import (
    load_cifar_fs,
    load_cub,
    load_fc100,
    load_mini_imagenet,
    load_tiered_imagenet,
)
from metalearn.signatures import checked
from metalearn.tasks.episodes import FewShotTasks

__all__ = [
    "cifar_fs_tasks",
    "cub_tasks",
    "fc100_tasks",
    "mini_imagenet_tasks",
    "tiered_imagenet_tasks",
]


@checked
def cifar_fs_tasks(
    *,
    root: str | Path | None = None,
    image_size: int = 32,
    download: bool = True,
    **episodes: Annotated[Any, FewShotTasks],
) -> FewShotTasks:
    """CIFAR-FS: 64, 16 and 20 classes of CIFAR-100 (Bertinetto et al., ICLR 2019).

    Args:
        root: cifar-100-binary.tar.gz or the folder that has it; None looks under
            ``METALEARN_DATA``, then downloads.
        image_size: height and width in pixels.
        download: whether to download what is not there.
        episodes: settings of `FewShotTasks`.

    Raises:
        SettingError: a setting that cannot work.
        DataError: the set is missing, incomplete or damaged.
    """
    data = load_cifar_fs(root, image_size=image_size, download=download)
    return FewShotTasks(data, **episodes)


@checked
def fc100_tasks(
    *,
    root: str | Path | None = None,
    image_size: int = 32,
    download: bool = True,
    **episodes: Annotated[Any, FewShotTasks],
) -> FewShotTasks:
    """FC100: 60, 20 and 20 classes of CIFAR-100, divided by superclass (Oreshkin et al., 2018).

    Args:
        root: cifar-100-binary.tar.gz or the folder that has it; None looks under
            ``METALEARN_DATA``, then downloads.
        image_size: height and width in pixels.
        download: whether to download what is not there.
        episodes: settings of `FewShotTasks`.

    Raises:
        SettingError: a setting that cannot work.
        DataError: the set is missing, incomplete or damaged.
    """
    return FewShotTasks(load_fc100(root, image_size=image_size, download=download), **episodes)


@checked
def mini_imagenet_tasks(
    *,
    root: str | Path | None = None,
    image_size: int = 84,
    **episodes: Annotated[Any, FewShotTasks],
) -> FewShotTasks:
    """mini-ImageNet: 64, 16 and 20 classes of ImageNet (Ravi and Larochelle, ICLR 2017).

    Args:
        root: folder of what you have: lists and pictures, folders of classes, or Parquet files;
            None looks under ``METALEARN_DATA``. See `metalearn.data.load_mini_imagenet`.
        image_size: height and width in pixels; converted once for each.
        episodes: settings of `FewShotTasks`.

    Raises:
        SettingError: a setting that cannot work.
        DataError: the set is missing, incomplete, or another one by that name.
    """
    return FewShotTasks(load_mini_imagenet(root, image_size=image_size), **episodes)


@checked
def tiered_imagenet_tasks(
    *,
    root: str | Path | None = None,
    image_size: int = 84,
    **episodes: Annotated[Any, FewShotTasks],
) -> FewShotTasks:
    """tiered-ImageNet: 351, 97 and 160 classes of ImageNet by category (Ren et al., ICLR 2018).

    Args:
        root: folder of what you have, ImageNet's own folder of training classes too; None looks
            under ``METALEARN_DATA``. See `metalearn.data.load_tiered_imagenet`.
        image_size: height and width in pixels; converted once for each.
        episodes: settings of `FewShotTasks`.

    Raises:
        SettingError: a setting that cannot work.
        DataError: the set is missing, incomplete, or another one by that name.
    """
    return FewShotTasks(load_tiered_imagenet(root, image_size=image_size), **episodes)


@checked
def cub_tasks(
    *,
    root: str | Path | None = None,
    image_size: int = 84,
    download: bool = True,
    **episodes: Annotated[Any, FewShotTasks],
) -> FewShotTasks:
    """CUB: 100, 50 and 50 kinds of birds (Wah et al., 2011; splits of Chen et al., ICLR 2019).

    Args:
        root: CUB_200_2011.tgz, or what it unpacks to; None looks under ``METALEARN_DATA``, then
            downloads.
        image_size: height and width in pixels; converted once for each.
        download: whether to download what is not there.
        episodes: settings of `FewShotTasks`.

    Raises:
        SettingError: a setting that cannot work.
        DataError: the set is missing, incomplete or damaged.
    """
    data = load_cub(root, image_size=image_size, download=download)
    return FewShotTasks(data, **episodes)
