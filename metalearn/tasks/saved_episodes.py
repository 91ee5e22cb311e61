"""Episodes that somebody put into folders: given tasks, each with its own numbers of pictures.

Axes: N support pictures, Q query pictures, W classes of an episode; [channels, height, width].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metalearn.data.folder_reading import FolderReading, existing_folder
from metalearn.data.folder_tree import ClassFolder, class_folders, subfolders
from metalearn.errors import DataError, SettingError
from metalearn.signatures import checked
from metalearn.types import TaskBatch

__all__ = ["Episode", "read_episodes"]

_PARTS = ("support", "query")


@dataclass(frozen=True)
class Episode:
    """A task of pictures from files.

    Attributes:
        name: of its folder.
        support: pictures float32 ``[N, channels, height, width]`` in [0, 1] and labels ``[N]``.
        query: the same, ``[Q, ...]``.
        class_names: W names, in the order of the labels.
        query_files: Q paths below the episode's query folder.
    """

    name: str
    support: tuple[Tensor, Tensor]
    query: tuple[Tensor, Tensor]
    class_names: tuple[str, ...]
    query_files: tuple[str, ...]

    @property
    def way(self) -> int:
        """W."""
        return len(self.class_names)

    @property
    def task(self) -> TaskBatch:
        """The episode as a batch of one task."""
        support, query = ((x[None], y[None]) for x, y in (self.support, self.query))
        return TaskBatch(support, query, torch.arange(self.way)[None])


@checked
def read_episodes(
    root: str | Path,
    *,
    image_size: int = 28,
    channels: int = 1,
    invert: bool = False,
    area: bool = False,
) -> list[Episode]:
    """The episodes ``root/<episode>/support/<class>/*.png`` and ``…/query/<class>/*.png``.

    Formats and limits of pictures are those of `metalearn.data.load_folder`. Classes are sorted by
    name; they may differ in their numbers of pictures, and episodes in their classes. A root that
    has ``support`` and ``query`` itself is one episode.

    Args:
        root: the folder.
        image_size: side of a picture in pixels; the largest centred square is brought to it.
        channels: 1 for grey, 3 for colour.
        invert: exchange bright and dark, for dark ink on light paper.
        area: make pictures smaller by area averaging, as Omniglot's are.

    Raises:
        SettingError: no folder at ``root``, or a setting that cannot work.
        DataError: no episodes, an episode without one of the two sets, a picture that cannot be
            read, a class of queries that is not in the support set.
    """
    reading = FolderReading(image_size, channels, "refuse", invert, area)  # type: ignore[arg-type]
    try:
        root = existing_folder(root)
    except SettingError as error:
        accepted = error.accepted.replace("class folders", "episodes")
        raise SettingError("episodes", error.value, accepted) from error
    folders = [root] if all((root / part).is_dir() for part in _PARTS) else subfolders(root)
    if not folders:
        raise DataError(f"{root}: no episodes are there, folders with support and query")
    return [_episode(folder, reading) for folder in folders]


def _episode(folder: Path, reading: FolderReading) -> Episode:
    for part in _PARTS:
        if not (folder / part).is_dir():
            raise DataError(f"{folder}: an episode needs the folders support and query")
    support, query = (class_folders(folder / part) for part in _PARTS)
    names = tuple(found.name for found in support)
    if len(names) < 2:
        raise DataError(f"{folder / 'support'}: at least two classes are needed, to be told apart")
    unknown = [found.name for found in query if found.name not in names]
    if unknown:
        raise DataError(f"{folder}: no support pictures of the class {unknown[0]} of queries")
    return Episode(
        folder.name,
        _pictures(folder / "support", support, names, reading),
        _pictures(folder / "query", query, names, reading),
        names,
        tuple(str(f.relative_to(folder / "query")) for found in query for f in found.files),
    )


def _pictures(
    folder: Path, classes: list[ClassFolder], names: tuple[str, ...], reading: FolderReading
) -> tuple[Tensor, Tensor]:
    images, labels = reading.read(folder, classes)
    places = torch.tensor([names.index(found.name) for found in classes])
    return images.float() / 255, places[labels]
