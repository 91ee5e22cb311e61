"""From which classes, and by which quarter turns, a task draws those that it tells apart.

Axes: W classes of a task (way).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metalearn.data.labelled_sets import LabelledSet
from metalearn.errors import SettingError
from metalearn.random_streams import AddressedStream

__all__ = ["ClassPools", "class_pools"]

_QUARTER_TURNS = 4


@dataclass(frozen=True)
class ClassPools:
    """Lists of classes, of which a task draws from one, in proportion to their lengths.

    Attributes:
        pools: lists of classes.
        way: W.
        turn_each: whether a class and its quarter turns are four classes.
        turn_together: whether a list and its quarter turns are four lists.
        names: of the lists, where they are groups of classes.
    """

    pools: Sequence[Sequence[int]]
    way: int
    turn_each: bool = False
    turn_together: bool = False
    names: Sequence[str] = ()

    def draw(
        self, stream: AddressedStream, number: int | None = None
    ) -> tuple[list[int], list[int]]:
        """W classes of one list and their quarter turns; ``number`` is the list, None any."""
        number, turn = self._list(stream) if number is None else (number, self._turn(stream))
        pool = self.pools[number]
        turns = _QUARTER_TURNS if self.turn_each else 1
        chosen = stream.without_replacement(len(pool) * turns, self.way)
        return [pool[i // turns] for i in chosen], [turn + i % turns for i in chosen]

    def _turn(self, stream: AddressedStream) -> int:
        """The quarter turns of a list."""
        return int(stream.uniform(1)[0] * _QUARTER_TURNS) if self.turn_together else 0

    def _list(self, stream: AddressedStream) -> tuple[int, int]:
        """The number of a list and its quarter turns."""
        lists = len(self.pools)
        number, turn = 0, 0
        if lists > 1 or self.turn_together:
            repeats = _QUARTER_TURNS if self.turn_together else 1
            edge = np.cumsum([len(pool) for pool in self.pools] * repeats)
            number = int(np.searchsorted(edge, stream.uniform(1)[0] * edge[-1], side="right"))
            turn, number = divmod(number, lists)
        return number, turn

    def every(self) -> list[tuple[int, int]]:
        """All classes that a task may draw, with their quarter turns."""
        turns = range(_QUARTER_TURNS if self.turn_each or self.turn_together else 1)
        return [(c, turn) for pool in self.pools for c in pool for turn in turns]


def class_pools(
    data: LabelledSet,
    split: str,
    *,
    way: int,
    within_group: bool,
    turn_each: bool,
    turn_together: bool,
) -> ClassPools:
    """The lists of a split: one, or of each alphabet that has enough classes its own.

    Raises:
        SettingError: more classes are asked for than a list has.
    """
    groups: dict[str, list[int]] = {}
    for c in data.splits[split]:
        groups.setdefault(data.class_groups[c] if within_group else "", []).append(c)
    turns = _QUARTER_TURNS if turn_each else 1
    largest = max((len(group) for group in groups.values()), default=0) * turns
    if way > largest:
        where = "its largest group" if within_group else "it"
        accepted = f"the {split} split offers {largest} classes in {where}, so at most {largest}"
        raise SettingError("way", way, accepted)
    pools = {name: group for name, group in groups.items() if len(group) * turns >= way}
    return ClassPools(list(pools.values()), way, turn_each, turn_together, tuple(pools))
