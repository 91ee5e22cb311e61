"""Several task distributions as one: a task's set is drawn by weight, then the task.

Axes: T tasks, S sets.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from metalearn.core.checks import as_device
from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.reprs import one_line
from metalearn.signatures import checked
from metalearn.tasks.by_split import (
    outputs_by_split,
    seeds_by_split,
    stream_of_split,
)
from metalearn.tasks.thread_safety import threads_may_draw
from metalearn.types import Split, TaskBatch, TaskDistribution

__all__ = ["MixtureTasks"]

_ID_BLOCK = 2**32  # class ids of one set


class MixtureTasks:
    """Tasks of S sets: a `TaskDistribution`.

    Task (seed, split, index) belongs to set s with the probability w_s / Σ w, and is the task of
    that index and split there. Tasks of all sets have the same shapes: inputs, numbers of support
    and query samples, outputs. ``class_ids`` are those of the set plus 2^32 times its number.

    Args:
        sets: name to task distribution, at least one.
        weights: w_s, one for each set in their order, none negative and one above 0; None draws
            all sets equally often.
        seed: of the draw of the sets.
        eval_seed: of that for validation and test tasks; None is ``seed``.

    Raises:
        SettingError: sets whose tasks cannot stand in one batch, or weights that are none.
    """

    @checked
    def __init__(
        self,
        sets: Mapping[str, TaskDistribution],
        *,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        eval_seed: int | None = None,
    ) -> None:
        if not sets:
            raise SettingError("sets", dict(sets), "at least one set is needed")
        self.sets, self.seed = dict(sets), seed
        self._seeds = seeds_by_split(seed, eval_seed)
        self._edges = np.cumsum(_checked_weights(weights, len(sets)))
        first = next(iter(self.sets.values()))
        self.kind: Literal["classification", "regression"] = first.kind
        self.input_shape, self.outputs = first.input_shape, first.outputs
        self.vocabulary: int | None = getattr(first, "vocabulary", None)
        self.outputs_by_split = outputs_by_split(first)
        self._check_alike()

    def __repr__(self) -> str:
        return one_line(self, ", ".join(self.sets), f"inputs {list(self.input_shape)}")

    def with_sets(self, sets: Mapping[str, TaskDistribution]) -> MixtureTasks:
        """The same draws from other sets of the same names, such as those of features."""
        found = copy.copy(self)
        found.sets = {name: sets[name] for name in self.sets}
        first = next(iter(found.sets.values()))
        found.input_shape = first.input_shape
        found.vocabulary = getattr(first, "vocabulary", None)
        return found

    @checked
    def sample(
        self, split: Split, indices: Sequence[int], *, device: torch.device | str = "cpu"
    ) -> TaskBatch:
        """Tasks ``indices`` of a split, of whichever sets they belong to.

        Raises:
            SettingError: an unknown split, or no index.
        """
        device = as_device(device)
        if not len(indices):
            raise SettingError("indices", indices, "at least one task index is needed")
        numbers = [self._number(split, int(index)) for index in indices]
        parts, order = [], []
        for number, source in enumerate(self.sets.values()):
            own = [place for place, drawn in enumerate(numbers) if drawn == number]
            if own:
                part = source.sample(split, [indices[place] for place in own], device=device)
                parts.append(_numbered(part, number))
                order += own
        back = torch.tensor(order).argsort().to(device)
        pairs = [(part.support, part.query) for part in parts]
        support, query = tree_map(lambda *p: torch.cat(p)[back], *pairs)
        ids = [part.class_ids for part in parts if part.class_ids is not None]
        known = torch.cat(ids)[back] if len(ids) == len(parts) else None
        return TaskBatch(support, query, known)

    @property
    def thread_safe(self) -> bool:
        """Whether threads may draw at once: from all of the sets."""
        return all(threads_may_draw(part) for part in self.sets.values())

    @checked
    def set_names(self, split: Split, indices: Sequence[int]) -> tuple[str, ...]:
        """The set of each of the tasks ``indices`` of a split."""
        names = tuple(self.sets)
        return tuple(names[self._number(split, int(index))] for index in indices)

    @checked
    def class_names(self, split: Split, index: int) -> tuple[str, ...]:
        """Names of the classes of a task, in the order of its labels, as ``set/class``.

        Raises:
            SettingError: a set that has no names of classes.
        """
        (name,) = self.set_names(split, [index])
        source: Any = self.sets[name]
        if not hasattr(source, "class_names"):
            raise SettingError("sets", name, "a set whose tasks have class_names is needed")
        return tuple(f"{name}/{found}" for found in source.class_names(split, index))

    def _number(self, split: Split, index: int) -> int:
        stream = stream_of_split(self._seeds, "mixture", split, index)
        return int(np.searchsorted(self._edges, stream.uniform(1)[0] * self._edges[-1], "right"))

    def _check_alike(self) -> None:
        """Refuse sets whose tasks differ in shape; one task of each split and set is drawn."""
        (name, first), *others = self.sets.items()
        wanted = _shapes(first, self.outputs_by_split)
        for other, source in others:
            found = _shapes(source, self.outputs_by_split)
            for what, value in wanted.items():
                if found[what] != value:
                    accepted = f"tasks of one shape are needed; {name} has {what} {value}"
                    raise SettingError(f"sets.{other}", f"{what} {found[what]}", accepted)


def _shapes(source: TaskDistribution, splits: Mapping[str, int]) -> dict[str, Any]:
    """What tasks have to have in common to stand in one batch."""
    shapes: dict[str, Any] = {
        "kind": source.kind,
        "inputs": tuple(source.input_shape),
        "vocabulary": getattr(source, "vocabulary", None),
        "outputs": outputs_by_split(source),
    }
    if set(shapes["outputs"]) == set(splits):
        for split in splits:
            task = source.sample(split, [0])  # type: ignore[arg-type]
            for name, batch in (("support", task.support), ("query", task.query)):
                shapes[f"{split} {name} sets"] = tree_map(lambda x: tuple(x.shape[1:]), batch)
    return shapes


def _numbered(batch: TaskBatch, number: int) -> TaskBatch:
    ids = batch.class_ids
    shifted = None if ids is None else ids + number * _ID_BLOCK
    return TaskBatch(batch.support, batch.query, shifted)


def _checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1.0] * count
    numbers = all(type(w) in (int, float) and math.isfinite(w) and w >= 0 for w in weights)
    if not numbers or len(weights) != count or not sum(weights) > 0:
        one = "one number of at least 0 for each set is needed, and one above 0"
        raise SettingError("weights", list(weights), f"{one}; there are {count} sets")
    return [float(weight) for weight in weights]
