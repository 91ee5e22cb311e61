"""Few-shot classification tasks (episodes) drawn from labelled pictures or texts.

Axes: T tasks, or batches of B samples; W classes of a task (way), S shots, Q queries a class; a
support set has W·S pictures or texts, class after class.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metalearn.core.checks import as_device
from metalearn.core.targets import IGNORED
from metalearn.data.affine import AFFINE_DRAWS, change_pictures
from metalearn.data.feature_table import FeatureTable
from metalearn.data.labelled_sets import LabelledSet
from metalearn.errors import SettingError, check_whole
from metalearn.random_streams import AddressedStream, check_split, uniform_of_each
from metalearn.signatures import checked
from metalearn.tasks.by_split import SplitSizes, seeds_by_split, sizes_by_split, tasks_line
from metalearn.tasks.class_pools import ClassPools, class_pools
from metalearn.tasks.picture_changes import affine_ranges, check_turns, unchanged
from metalearn.tasks.stored_inputs import StoredInputs, as_stored
from metalearn.tasks.training_samples import TrainingSamples
from metalearn.tasks.units import GroupUnits
from metalearn.tasks.varying_sizes import TaskSizes, VaryingSizes
from metalearn.types import Batch, Split, TaskBatch

__all__ = ["FewShotTasks"]


class FewShotTasks:
    """W-way S-shot classification: a `TaskDistribution`, and a `SampleDistribution`.

    Task (seed, split, index) draws W classes of the split without replacement, a quarter turn of
    each where rotations make classes, and S + Q different samples of each. Labels 0..W-1 follow
    the order in which the classes were drawn; ``class_ids`` of a batch says which classes they
    are: the class of the data, plus the number of all classes for each quarter turn. Pixels are
    float32 in [0, 1], tokens of texts int64.

    Way, shot and query are numbers or mappings from splits to numbers, ``{"train": 20, "test": 5}``
    (of validation and test, one that is not named is as the other). ``outputs_by_split`` is the way
    of each split, ``outputs`` that of training.

    Args:
        data: pictures, texts or arrays in classes; only pictures are turned or changed.
        way: W, at least 2.
        shot: S, at least 1.
        query: Q, at least 1.
        rotate_train: classes made by turning every training class by 0, 90, 180 and 270 degrees.
        rotate_eval: the same for validation and test classes.
        within_group: the classes of a task come from one alphabet, drawn in proportion to its
            number of classes; alphabets with fewer than W classes are left out.
        turn_groups: every training alphabet, turned as a whole by 90, 180 and 270 degrees, is three
            further alphabets: all classes of a task are turned alike.
        least: smallest ``way``, ``shot`` and ``query`` of a task, as
            ``{"way": 3, "shot": {"train": 1, "test": 2}}``: each task draws its own between these
            and W, S and Q, for every class. The rest of a set is padding, with the target −100,
            and classes may have fewer than S + Q pictures. What is not named does not vary.
        augment: ranges of random affine changes of every training picture by itself, as
            ``{"rotate": 10, "scale": 0.2, "shear": 0.2, "shift": 0.1}``: see
            `metalearn.data.AffineRanges`. They belong to the task's address, too.
        seed: of the tasks.
        eval_seed: of validation and test tasks; None is ``seed``.

    Raises:
        SettingError: way, shot or query beyond what the data hold, before any task is drawn, or
            settings that contradict one another.
    """

    kind: Literal["classification"] = "classification"
    __repr__ = tasks_line
    thread_safe = True

    @checked
    def __init__(
        self,
        data: LabelledSet,
        *,
        way: SplitSizes = 5,
        shot: SplitSizes = 1,
        query: SplitSizes = 1,
        rotate_train: bool = False,
        rotate_eval: bool = False,
        within_group: bool = False,
        turn_groups: bool = False,
        least: Mapping[str, SplitSizes | None] | None = None,
        augment: Mapping[str, float] | None = None,
        seed: int = 0,
        eval_seed: int | None = None,
    ) -> None:
        self._way = sizes_by_split("way", way, 2, data.splits)
        self._shot = sizes_by_split("shot", shot, 1, data.splits)
        self._query = sizes_by_split("query", query, 1, data.splits)
        self._seeds = seeds_by_split(seed, eval_seed)
        most = {"way": self._way, "shot": self._shot, "query": self._query}
        self._sizes, self.outputs_by_split = VaryingSizes(least or {}, most, self._seeds), self._way
        self.data, self.way, self.shot, self.query, self.seed = data, way, shot, query, seed
        self.input_shape: tuple[int, ...] = tuple(data.inputs.shape[1:])
        self.vocabulary: int | None = getattr(data, "vocabulary", None)
        self.outputs = self._way.get("train") or next(iter(self._way.values()))
        self._within_group, self._augment = within_group, affine_ranges(augment or {})
        check_turns(
            {"rotate_train": rotate_train, "rotate_eval": rotate_eval, "turn_groups": turn_groups},
            within_group=within_group, changed=self._augment.active,
            of=unchanged(data), shape=self.input_shape,
        )  # fmt: skip
        order = torch.argsort(data.labels, stable=True)
        counts = torch.bincount(data.labels, minlength=len(data.class_names))
        self._pictures = [part.numpy() for part in torch.split(order, counts.tolist())]
        self._pools: dict[str, ClassPools] = {}
        for split in data.splits:
            self._check_pictures(split)
            training = split == "train"
            self._pools[split] = class_pools(
                data, split, way=self._way[split], within_group=within_group,
                turn_each=rotate_train if training else rotate_eval,
                turn_together=training and turn_groups,
            )  # fmt: skip
        self._inputs = StoredInputs(as_stored(data.inputs))
        self.features: FeatureTable | None = None

    @property
    def turned(self) -> bool:
        """Whether pictures are turned by quarters in any split."""
        return any(pool.turn_each or pool.turn_together for pool in self._pools.values())

    def with_features(self, table: FeatureTable) -> FewShotTasks:
        """The same tasks, of the features ``[D]`` of each picture in its place.

        Args:
            table: of ``data.inputs``, turned too where tasks turn them. It stands as ``features``
                of the new tasks, and describes further pictures.

        Raises:
            SettingError: random changes of pictures, of which there are too many to describe.
        """
        if self._augment.active:
            accepted = "no ranges are needed where the features of pictures are computed once"
            raise SettingError("task.augment", "ranges above 0", accepted)
        found = copy.copy(self)
        found.features, found.input_shape, found.vocabulary = table, (table.size,), None
        found._inputs = StoredInputs(table.values)
        return found

    @checked
    def sample(
        self, split: Split, indices: Sequence[int], *, device: torch.device | str = "cpu"
    ) -> TaskBatch:
        """Tasks ``indices`` of a split: inputs ``[T, W·S or W·Q, ...]``, targets ``[T, ...]``.

        Raises:
            SettingError: a split that the data do not have, or no index.
        """
        self._check_split(split)
        if not len(indices):
            raise SettingError("indices", indices, "at least one task index is needed")
        return self._sample(split, indices, [None] * len(indices), device)

    @checked
    def training_units(self, users: int | None = None) -> GroupUnits:
        """The groups of the training split, which ``within_group`` keeps the data of apart.

        Raises:
            SettingError: tasks of any classes, data without a training split, a number of users.
        """
        self._check_split("train")
        if not self._within_group:
            reason = "true is needed: tasks of any classes share them, and are nobody's own"
            raise SettingError("task.within_group", False, reason)
        return GroupUnits(self._pools["train"].names, partial(self._sample, "train"), users)

    def _sample(
        self,
        split: Split,
        indices: Sequence[int],
        groups: Sequence[int | None],
        device: torch.device | str,
    ) -> TaskBatch:
        """Tasks of any groups, or of given ones."""
        device = as_device(device)
        drawn = [self._draw(split, int(i), group) for i, group in zip(indices, groups)]
        pictures = torch.as_tensor(np.stack([d[0] for d in drawn]))
        classes, turns = (torch.tensor([d[i] for d in drawn]) for i in (1, 2))
        sizes = [d[3] for d in drawn]
        inputs = self._inputs.gather(pictures, turns, device)
        if split == "train" and self._augment.active:
            inputs = self._change(inputs, indices)
        labels = torch.arange(self._way[split], device=device)[None, :, None]
        shot, query = self._shot[split], self._query[split]
        labels = labels.expand(len(drawn), -1, shot + query)
        if self._sizes.vary:
            real = torch.as_tensor(np.stack([s.real(shot, query) for s in sizes])).to(device)
            there = real.view(*real.shape, *[1] * len(self.input_shape))
            inputs = torch.where(there, inputs, inputs[:, :1, :1])
            labels = torch.where(real, labels, IGNORED)
        return TaskBatch(
            _flatten(inputs[:, :, :shot], labels[:, :, :shot]),
            _flatten(inputs[:, :, shot:], labels[:, :, shot:]),
            (classes + turns * len(self.data.class_names)).to(device),
        )

    @property
    def training_classes(self) -> int:
        """How many classes training tasks draw from, quarter turns that are classes counted."""
        return self._samples.classes

    @checked
    def training_samples(
        self, indices: Sequence[int], size: int, *, device: torch.device | str = "cpu"
    ) -> Batch:
        """Batches ``indices`` of training samples: inputs ``[T, B, ...]``, classes ``[T, B]``.

        B = ``size`` samples are drawn with replacement from all of the classes that training tasks
        draw from, and turned and changed as theirs are. Classes are 0..``training_classes`` − 1. As
        a task has, a batch has the address (seed, "train", index).

        Raises:
            SettingError: data without a training split, no index, a size below 1.
        """
        check_whole("size", size, 1)
        device = as_device(device)
        if not len(indices):
            raise SettingError("indices", indices, "at least one index of a batch is needed")
        seed, samples = self._seeds["train"], self._samples
        drawn = [samples.draw(AddressedStream(seed, "train", int(i)), size) for i in indices]
        pictures, turns, classes = (torch.as_tensor(np.stack(part)) for part in zip(*drawn))
        inputs = self._inputs.gather(pictures[..., None], turns, device)
        if self._augment.active:
            inputs = self._change(inputs, indices)
        return inputs.squeeze(2), classes.to(device)

    @cached_property
    def _samples(self) -> TrainingSamples:
        self._check_split("train")
        return TrainingSamples(self._pools["train"], self._pictures)

    @checked
    def class_names(self, split: Split, index: int) -> tuple[str, ...]:
        """Names of the classes of a task, in the order of its labels."""
        self._check_split(split)
        stream = AddressedStream(self._seeds[split], split, index)
        classes, turns = self._pools[split].draw(stream)
        there = self._sizes_of(split, index, classes).way
        names = self.data.class_names
        chosen = zip(classes[:there], turns)
        return tuple(names[c] + (f" turned {90 * t}°" if t else "") for c, t in chosen)

    def _check_split(self, split: Split) -> None:
        check_split(split)
        if split not in self._pools:
            raise SettingError("split", split, f"these data have {', '.join(self._pools)}")

    def _sizes_of(self, split: Split, index: int, classes: Sequence[int]) -> TaskSizes:
        counts = [len(self._pictures[c]) for c in classes]
        return self._sizes.of_task(split, index, counts)

    def _draw(
        self, split: Split, index: int, group: int | None
    ) -> tuple[np.ndarray, list[int], list[int], TaskSizes]:
        """Picture numbers ``[W, S+Q]``, classes and quarter turns ``[W]``, sizes of one task."""
        stream = AddressedStream(self._seeds[split], split, index)
        classes, turns = self._pools[split].draw(stream, group)
        sizes = self._sizes_of(split, index, classes)
        rows = []
        for c, shot, query in zip(classes, sizes.shots, sizes.queries):
            own = self._pictures[c]
            rows.append(own[self._sizes.places(split, len(own), shot, query, stream)])
        return np.stack(rows), classes, turns, sizes

    def _change(self, inputs: Tensor, indices: Sequence[int]) -> Tensor:
        """``[T, W, S+Q, C, H, W]``, every picture changed as its place in its task says."""
        count = inputs[0].shape[:2].numel() * AFFINE_DRAWS
        drawn = uniform_of_each(self._seeds["train"], "affine", indices, count)
        draws = torch.from_numpy(drawn).view(-1, AFFINE_DRAWS).to(inputs)
        return change_pictures(inputs.flatten(0, 2), self._augment, draws).view_as(inputs)

    def _check_pictures(self, split: str) -> None:
        """Refuse shot and query beyond the pictures of a class."""
        each = self._sizes.pictures(split)
        for c in self.data.splits[split]:
            found = len(self._pictures[c])
            if found < each:
                name = self.data.class_names[c]
                what = unchanged(self.data) or "pictures"
                accepted = f"class {name} has {found} {what}, so at most as many are accepted"
                raise SettingError("shot + query", each, accepted)


def _flatten(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """``[T, W, n, ...]`` and ``[T, W, n]`` to ``[T, W·n, ...]`` and ``[T, W·n]``."""
    return inputs.flatten(1, 2), labels.flatten(1, 2)
