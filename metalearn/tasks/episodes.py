"""Few-shot classification tasks (episodes) drawn from labelled pictures.

Axes: T tasks, W classes of a task (way), S shots, Q queries a class; a support set has W·S
pictures, class after class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metalearn.core.checks import as_device
from metalearn.data.images import LabelledImages
from metalearn.errors import SettingError
from metalearn.random_streams import AddressedStream, check_seed, check_split
from metalearn.signatures import checked
from metalearn.tasks.by_split import SplitSizes, sizes_by_split
from metalearn.types import Split, TaskBatch

__all__ = ["FewShotTasks"]

_QUARTER_TURNS = 4


class FewShotTasks:
    """W-way S-shot classification of pictures: a `TaskDistribution`.

    Task (seed, split, index) draws W classes of the split without replacement, a quarter turn of
    each where rotations make classes, and S + Q different pictures of each. Labels 0..W-1 follow
    the order in which the classes were drawn; ``class_ids`` of a batch says which classes they
    are: the class of the data, plus the number of all classes for each quarter turn. Pixels are
    float32 in [0, 1].

    Way, shot and query are numbers or mappings from splits to numbers, ``{"train": 20, "test": 5}``
    (of validation and test, one that is not named is as the other). ``outputs_by_split`` is the way
    of each split, ``outputs`` that of training.

    Args:
        data: pictures, classes, groups and splits.
        way: W, at least 2.
        shot: S, at least 1.
        query: Q, at least 1.
        rotate_train: classes made by turning every training class by 0, 90, 180 and 270 degrees.
        rotate_eval: the same for validation and test classes.
        within_group: the classes of a task come from one alphabet, drawn in proportion to its
            number of classes; alphabets with fewer than W classes are left out.
        seed: of the tasks.

    Raises:
        SettingError: way, shot or query beyond what the data hold, before any task is drawn.
    """

    kind: Literal["classification"] = "classification"

    @checked
    def __init__(
        self,
        data: LabelledImages,
        *,
        way: SplitSizes = 5,
        shot: SplitSizes = 1,
        query: SplitSizes = 1,
        rotate_train: bool = False,
        rotate_eval: bool = False,
        within_group: bool = False,
        seed: int = 0,
    ) -> None:
        self._way = sizes_by_split("way", way, 2, data.splits)
        self._shot = sizes_by_split("shot", shot, 1, data.splits)
        self._query = sizes_by_split("query", query, 1, data.splits)
        check_seed(seed)
        self.data, self.way, self.shot, self.query, self.seed = data, way, shot, query, seed
        self.input_shape = data.image_shape
        self.outputs_by_split = self._way
        self.outputs = self._way.get("train") or next(iter(self._way.values()))
        self._turns = {"train": rotate_train, "validation": rotate_eval, "test": rotate_eval}
        if any(self._turns.values()) and self.input_shape[1] != self.input_shape[2]:
            raise SettingError(
                "rotate_train" if rotate_train else "rotate_eval",
                True,
                f"turning needs square pictures, not {data.image_shape}",
            )
        order = torch.argsort(data.labels, stable=True)
        counts = torch.bincount(data.labels, minlength=len(data.class_names))
        self._pictures = [part.numpy() for part in torch.split(order, counts.tolist())]
        self._pools = {
            split: self._class_pools(split, classes, within_group)
            for split, classes in data.splits.items()
        }
        self._on_device: dict[str, Tensor] = {}

    @checked
    def sample(
        self, split: Split, indices: Sequence[int], *, device: torch.device | str = "cpu"
    ) -> TaskBatch:
        """Tasks ``indices`` of a split: inputs ``[T, W·S or W·Q, C, H, W]``, targets ``[T, ...]``.

        Raises:
            SettingError: a split that the data do not have, or no index.
        """
        self._check_split(split)
        device = as_device(device)
        if not len(indices):
            raise SettingError("indices", indices, "at least one task index is needed")
        drawn = [self._draw(split, int(index)) for index in indices]
        pictures = torch.as_tensor(np.stack([d[0] for d in drawn]))
        classes, turns = (torch.tensor([d[i] for d in drawn]) for i in (1, 2))
        inputs = self._gather(pictures, turns, device)
        labels = torch.arange(self._way[split], device=device)[None, :, None]
        labels = labels.expand(len(drawn), -1, 1)
        shot = self._shot[split]
        return TaskBatch(
            _flatten(inputs[:, :, :shot], labels),
            _flatten(inputs[:, :, shot:], labels),
            (classes + turns * len(self.data.class_names)).to(device),
        )

    @checked
    def class_names(self, split: Split, index: int) -> tuple[str, ...]:
        """Names of the W classes of a task, in the order of its labels."""
        self._check_split(split)
        classes, turns = self._draw_classes(AddressedStream(self.seed, split, index), split)
        names = self.data.class_names
        return tuple(names[c] + (f" turned {90 * t}°" if t else "") for c, t in zip(classes, turns))

    def _check_split(self, split: Split) -> None:
        check_split(split)
        if split not in self._pools:
            raise SettingError("split", split, f"these data have {', '.join(self._pools)}")

    def _draw_classes(self, stream: AddressedStream, split: Split) -> tuple[list[int], list[int]]:
        pools, sizes = self._pools[split]
        pool = pools[0]
        if len(pools) > 1:
            edge = np.cumsum(sizes)
            pool = pools[int(np.searchsorted(edge, stream.uniform(1)[0] * edge[-1], side="right"))]
        turns = _QUARTER_TURNS if self._turns[split] else 1
        chosen = stream.without_replacement(len(pool) * turns, self._way[split])
        return [pool[i // turns] for i in chosen], [i % turns for i in chosen]

    def _draw(self, split: Split, index: int) -> tuple[np.ndarray, list[int], list[int]]:
        """Picture numbers ``[W, S+Q]``, classes and quarter turns ``[W]`` of one task."""
        stream = AddressedStream(self.seed, split, index)
        classes, turns = self._draw_classes(stream, split)
        each = self._shot[split] + self._query[split]
        rows = [
            self._pictures[c][stream.without_replacement(len(self._pictures[c]), each)]
            for c in classes
        ]
        return np.stack(rows), classes, turns

    def _gather(self, pictures: Tensor, turns: Tensor, device: torch.device) -> Tensor:
        """``[T, W, S+Q, C, H, W]`` float32 in [0, 1], turned."""
        key = str(device)
        if key not in self._on_device:
            self._on_device[key] = self.data.images.to(device)
        inputs = self._on_device[key][pictures.to(device)].float().div_(255)
        for turn in range(1, _QUARTER_TURNS):
            chosen = turns == turn
            if chosen.any():
                chosen = chosen.to(device)
                inputs[chosen] = torch.rot90(inputs[chosen], turn, dims=(-2, -1))
        return inputs

    def _class_pools(
        self, split: str, classes: Sequence[int], within_group: bool
    ) -> tuple[list[list[int]], list[int]]:
        """Lists of classes that a task draws from, and their sizes; checks way, shot and query."""
        each, way = self._shot[split] + self._query[split], self._way[split]
        for c in classes:
            if len(self._pictures[c]) < each:
                raise SettingError(
                    "shot + query",
                    each,
                    f"class {self.data.class_names[c]} has {len(self._pictures[c])} pictures, "
                    "so at most as many are accepted",
                )
        groups: dict[str, list[int]] = {}
        for c in classes:
            groups.setdefault(self.data.class_groups[c] if within_group else "", []).append(c)
        turns = _QUARTER_TURNS if self._turns.get(split) else 1
        largest = max((len(g) for g in groups.values()), default=0) * turns
        if way > largest:
            where = "its largest group" if within_group else "it"
            raise SettingError(
                "way",
                way,
                f"the {split} split offers {largest} classes in {where}, so at most {largest}",
            )
        pools = [g for g in groups.values() if len(g) * turns >= way]
        return pools, [len(g) for g in pools]


def _flatten(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """``[T, W, n, ...]`` and ``[T, W, 1]`` to ``[T, W·n, ...]`` and ``[T, W·n]``."""
    return inputs.flatten(1, 2), labels.expand(-1, -1, inputs.shape[2]).flatten(1, 2)
