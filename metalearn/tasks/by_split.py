"""Sizes of tasks that may differ from split to split, and the outputs of a task of each split.

Axes: none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, get_args

from metalearn.errors import SettingError, check_whole
from metalearn.random_streams import AddressedStream, Purpose, check_seed, check_split
from metalearn.reprs import one_line
from metalearn.signatures import checked
from metalearn.types import Split, TaskDistribution

__all__ = [
    "SplitSizes",
    "any_split",
    "outputs_by_split",
    "seeds_by_split",
    "sizes_by_split",
    "stream_of_split",
    "tasks_line",
]

SplitSizes = int | Mapping[str, int]
"""A number for all splits, or one for each: ``{"train": 20, "test": 5}``."""

_SPLITS: tuple[str, ...] = get_args(Split)
_LARGEST_INDEX = 2**56  # times three is below the 2^58 of a purpose
_EVALUATED = {"validation": "test", "test": "validation"}


def tasks_line(tasks: Any) -> str:
    """Tasks in one line: their sizes, the shape of an input and the seed."""
    names = [name for name in ("way", "shot", "query", "seed") if hasattr(tasks, name)]
    sizes = (f"{name}={getattr(tasks, name)}" for name in names)
    return one_line(tasks, *sizes, f"inputs {list(tasks.input_shape)}")


def sizes_by_split(
    setting: str, sizes: SplitSizes, least: int, splits: Collection[str] = _SPLITS
) -> dict[str, int]:
    """The number for each of ``splits``.

    Of validation and test, one that is not named takes the number of the other.

    Args:
        setting: what the sizes are of, for messages.
        sizes: a number, or a mapping from splits to numbers.
        least: the smallest number that is accepted.
        splits: those that are needed.

    Raises:
        SettingError: no whole number of at least ``least``, a split that is none, a split without
            a number.
    """
    if not isinstance(sizes, Mapping):
        check_whole(setting, sizes, least)
        return dict.fromkeys(splits, sizes)
    for split, size in sizes.items():
        if split not in _SPLITS:
            raise SettingError(setting, dict(sizes), f"splits are {', '.join(_SPLITS)}")
        check_whole(f"{setting}.{split}", size, least)
    found = {split: sizes.get(split, sizes.get(_EVALUATED.get(split, ""))) for split in splits}
    missing = [split for split, size in found.items() if size is None]
    if missing:
        accepted = f"a number for the {missing[0]} split is needed as well"
        raise SettingError(setting, dict(sizes), accepted)
    return {split: size for split, size in found.items() if size is not None}


def seeds_by_split(seed: int, eval_seed: int | None) -> dict[Split, int]:
    """``seed`` of training tasks, ``eval_seed`` of the others; None is ``seed`` too.

    Raises:
        SettingError: what is no seed.
    """
    check_seed(seed)
    if eval_seed is None:
        eval_seed = seed
    check_seed(eval_seed, "eval_seed")
    return {"train": seed, "validation": eval_seed, "test": eval_seed}


def stream_of_split(
    seeds: Mapping[Split, int], purpose: Purpose, split: Split, index: int
) -> AddressedStream:
    """Draws for a task that are not those of the task itself, but belong to its address too.

    Raises:
        SettingError: an unknown split, or no index.
    """
    check_split(split)
    check_whole("index", index, 0, _LARGEST_INDEX)
    return AddressedStream(seeds[split], purpose, index * len(_SPLITS) + _SPLITS.index(split))


@checked
def outputs_by_split(tasks: TaskDistribution) -> dict[str, int]:
    """Outputs of a task of each split: ``tasks.outputs_by_split`` where there is one.

    Distributions whose tasks have the same outputs in every split need not say so: ``outputs`` is
    taken for all three.
    """
    found: Mapping[str, int] | None = getattr(tasks, "outputs_by_split", None)
    return dict.fromkeys(_SPLITS, tasks.outputs) if found is None else dict(found)


def any_split(tasks: TaskDistribution) -> Split:
    """The training split, or of tasks without one, which are for tests alone, another."""
    splits: list[Any] = list(outputs_by_split(tasks))
    found: Split = "train" if "train" in splits else splits[0]
    return found
