"""Tasks whose sizes vary: fewer classes, shots and queries than most, the rest being padding.

Axes: W classes, S shots and Q queries of the largest task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from metalearn.errors import SettingError
from metalearn.near_names import check_known
from metalearn.random_streams import AddressedStream
from metalearn.tasks.by_split import SplitSizes, sizes_by_split, stream_of_split
from metalearn.types import Split

__all__ = ["TaskSizes", "VaryingSizes"]

_SMALLEST = {"way": 2, "shot": 1, "query": 1}


class TaskSizes(NamedTuple):
    """How many classes a task has, and how many shots and queries each of W."""

    way: int
    shots: list[int]
    queries: list[int]

    def real(self, shot: int, query: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """``[W, S + Q]``: which places hold a picture of the task, and are no padding."""
        classes = np.arange(len(self.shots))[:, None] < self.way
        support = np.arange(shot) < np.array(self.shots)[:, None]
        queries = np.arange(query) < np.array(self.queries)[:, None]
        real: np.ndarray[Any, np.dtype[np.bool_]] = classes & np.concatenate([support, queries], 1)
        return real


class VaryingSizes:
    """Sizes of the tasks of each split, each uniform between two numbers.

    A class with fewer pictures than a task wants of it gives as many shots as leave the least
    number of queries, and the rest as queries.

    Args:
        least: of ``way``, ``shot`` and ``query``, a number or one for each split; what is not named
            does not vary.
        most: of the same, for each split.
        seeds: of each split.

    Raises:
        SettingError: an unknown name, or more than the most.
    """

    def __init__(
        self,
        least: Mapping[str, SplitSizes | None],
        most: Mapping[str, Mapping[str, int]],
        seeds: Mapping[Split, int],
    ) -> None:
        self.most, self._seeds = most, seeds
        self.least: dict[str, Mapping[str, int]] = dict(most)
        for name, sizes in least.items():
            check_known(f"least.{name}", name, _SMALLEST)
            if sizes is None:
                continue
            found = sizes_by_split(f"least.{name}", sizes, _SMALLEST[name], most[name])
            for split, size in found.items():
                if size > most[name][split]:
                    accepted = f"at most {most[name][split]}, the {name} of the {split} split"
                    raise SettingError(f"least.{name}", size, accepted)
            self.least[name] = found
        self.vary = self.least != dict(most)

    def pictures(self, split: str) -> int:
        """How many pictures every class has to have."""
        return self.least["shot"][split] + self.least["query"][split]

    def of_task(self, split: Split, index: int, counts: Sequence[int]) -> TaskSizes:
        """The sizes of a task whose W classes have so many pictures."""
        if not self.vary:
            way, shot, query = (self.most[name][split] for name in _SMALLEST)
            return TaskSizes(way, [shot] * way, [query] * way)
        draws = stream_of_split(self._seeds, "sizes", split, index).uniform(1 + 2 * len(counts))
        rest = self.least["query"][split]
        shots = [
            min(self._drawn("shot", split, draw), count - rest)
            for draw, count in zip(draws[1::2], counts)
        ]
        queries = [
            min(self._drawn("query", split, draw), count - shot)
            for draw, count, shot in zip(draws[2::2], counts, shots)
        ]
        return TaskSizes(self._drawn("way", split, draws[0]), shots, queries)

    def _drawn(self, name: str, split: str, draw: float) -> int:
        low, high = self.least[name][split], self.most[name][split]
        return low + int(draw * (high - low + 1))

    def places(
        self, split: str, count: int, shot: int, query: int, stream: AddressedStream
    ) -> list[int]:
        """``[S + Q]``: pictures of a class, in which one is repeated where there are too few."""
        most = self.most["shot"][split]
        every = most + self.most["query"][split]
        drawn = stream.without_replacement(count, min(count, every))
        if len(drawn) == every:
            return drawn
        found = [drawn[0]] * every
        found[:shot] = drawn[:shot]
        found[most : most + query] = drawn[shot : shot + query]
        return found
