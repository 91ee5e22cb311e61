"""Few-shot tasks from each source of pictures or texts, by name.

Each function loads a data set and hands it, with the settings of `FewShotTasks` (way, shot, query,
rotations, seed), to the episode sampler.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from metalearn.data import (
    OmniglotSplit,
    list_folder,
    load_folder,
    load_glyphs,
    load_omniglot,
    load_texts,
)
from metalearn.data.tokens import Tokens
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.tasks.by_split import SplitSizes
from metalearn.tasks.episodes import FewShotTasks

__all__ = ["folder_tasks", "glyph_tasks", "omniglot_tasks", "text_tasks"]


@checked
def glyph_tasks(*, image_size: int = 28, **episodes: Annotated[Any, FewShotTasks]) -> FewShotTasks:
    """Letters of the world's scripts, drawn from fonts that come with matplotlib; no download.

    Args:
        image_size: height and width in pixels.
        episodes: settings of `FewShotTasks`.

    Raises:
        SettingError: a setting that cannot work.
        DataError: the fonts are missing.
    """
    return FewShotTasks(load_glyphs(image_size=image_size), **episodes)


@checked
def omniglot_tasks(
    *,
    root: str | Path | None = None,
    split: OmniglotSplit = "random",
    validation_groups: int | None = None,
    image_size: int = 28,
    download: bool = True,
    **episodes: Annotated[Any, FewShotTasks],
) -> FewShotTasks:
    """Handwritten characters of 50 alphabets (Lake et al., Science 2015).

    Args:
        root: folder of the archives; None looks under ``METALEARN_DATA``, then downloads.
        split: ``"random"`` (1100, 100 and 423 characters), ``"alphabets"`` (background against
            evaluation), ``"small1"``, ``"small2"`` (five background alphabets).
        validation_groups: how many background alphabets are for validation, 0 to 22, where
            alphabets are divided; None are five. 0 leaves out the validation split.
        image_size: height and width in pixels.
        download: whether to download what is not there.
        episodes: settings of `FewShotTasks`.

    Raises:
        SettingError: a setting that cannot work.
        DataError: the set is missing, incomplete or corrupt.
    """
    data = load_omniglot(
        root,
        split=split,
        validation_groups=validation_groups,
        image_size=image_size,
        download=download,
    )
    return FewShotTasks(data, **episodes)


@checked
def folder_tasks(
    root: str | Path,
    *,
    image_size: int = 28,
    channels: Literal[1, 3] = 3,
    invert: bool = False,
    on_corrupt: Literal["refuse", "skip"] = "refuse",
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    keep: Literal["memory", "cache", "nothing"] = "memory",
    **episodes: Annotated[Any, FewShotTasks],
) -> FewShotTasks:
    """Pictures of your own: a folder of class folders.

    Args:
        root: the folder; see `metalearn.data.load_folder` for its layout.
        image_size: height and width in pixels.
        channels: 1 for grey, 3 for colour.
        invert: swap light and dark.
        on_corrupt: ``"refuse"`` or ``"skip"`` files that cannot be read.
        validation_fraction: share of the classes for validation, where the layout has no splits; 0
            leaves that split out.
        test_fraction: share of the classes for test; 1: all of them.
        keep: where decoded pictures are: in ``"memory"``, of each process, decoded at its start; in
            the ``"cache"`` folder, decoded once and shared by processes; ``"nothing"`` decodes
            them whenever a task takes them.
        episodes: settings of `FewShotTasks`.

    Raises:
        SettingError: a setting that cannot work.
        DataError: no pictures, or files that cannot be read.
    """
    how: dict[str, Any] = {
        "image_size": image_size, "channels": channels, "invert": invert,
        "validation_fraction": validation_fraction, "test_fraction": test_fraction,
    }  # fmt: skip
    if keep not in ("memory", "cache", "nothing"):
        raise SettingError("keep", keep, "memory, cache or nothing is needed")
    if keep != "nothing":
        data = load_folder(root, on_corrupt=on_corrupt, keep=keep, **how)
        return FewShotTasks(data, **episodes)
    if on_corrupt != "refuse":
        accepted = "refuse is needed with keep=nothing: which pictures can be read is not known"
        raise SettingError("on_corrupt", on_corrupt, accepted)
    return FewShotTasks(list_folder(root, **how), **episodes)


@checked
def text_tasks(
    root: str | Path,
    *,
    tokens: Tokens = "words",
    vocabulary: int | None = None,
    length: int = 64,
    text: str = "text",
    label: str = "label",
    on_empty: Literal["refuse", "skip"] = "refuse",
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    way: SplitSizes = 5,
    shot: SplitSizes = 1,
    query: SplitSizes = 1,
    within_group: bool = False,
    least: Mapping[str, SplitSizes | None] | None = None,
    seed: int = 0,
    eval_seed: int | None = None,
) -> FewShotTasks:
    """Texts of your own, a folder of class folders or a table, as tokens ``[..., length]``.

    Args:
        root: the folder or the table; see `metalearn.data.load_texts` for layouts.
        tokens: ``"words"``, ``"bytes"``, or a function from a text to numbers of at least 1.
        vocabulary: how many numbers tokens have, padding (0) included; None: 8,192, of bytes 257.
        length: tokens of a text; longer ones are cut off, shorter ones padded.
        text: the column of texts, of a table.
        label: the column of classes.
        on_empty: ``"refuse"`` or ``"skip"`` texts without tokens.
        validation_fraction: share of the classes for validation, where nothing names splits.
        test_fraction: share of the classes for test.
        way: classes of a task; this and what follows as of `FewShotTasks`.
        shot: support texts of a class.
        query: query texts of a class.
        within_group: whether the classes of a task come from one group.
        least: smallest sizes of a task, where they vary.
        seed: of the tasks.
        eval_seed: of validation and test tasks.

    Raises:
        SettingError: a setting that cannot work.
        DataError: no texts, or files that cannot be read.
    """
    data = load_texts(
        root,
        tokens=tokens,
        vocabulary=vocabulary,
        length=length,
        text=text,
        label=label,
        on_empty=on_empty,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
    )
    sizes: dict[str, Any] = {"way": way, "shot": shot, "query": query, "least": least}
    return FewShotTasks(data, within_group=within_group, seed=seed, eval_seed=eval_seed, **sizes)
