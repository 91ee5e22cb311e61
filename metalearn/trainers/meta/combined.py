"""Several learners as one: each adapts by itself, and their predictions are averaged.

Axes: M networks of all learners, T tasks, K inner steps, B queries, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import SettingError, check_whole
from metalearn.models import Ensemble
from metalearn.random_streams import check_split
from metalearn.stretches import stretch
from metalearn.tasks.deferred import TaskShapes
from metalearn.trainers.meta.by_set import by_set
from metalearn.trainers.meta.nan_scores import check_tasks
from metalearn.trainers.meta.normalization import common_normalization
from metalearn.trainers.meta.protocol import Learner
from metalearn.trainers.meta.reports import TestReport, task_report
from metalearn.trainers.meta.scores import TaskScores, joined_scores
from metalearn.trainers.meta.scoring import outputs_of_networks, scores_of_members
from metalearn.trainers.meta.trainer import MetaTrainer
from metalearn.trainers.meta.uncertainty import CalibratedSets, ConformalSets, check_has_classes
from metalearn.types import Batch, Split, TaskBatch

__all__ = ["CombinedLearners", "CombinedMetaTrainers"]


class CombinedLearners:
    """Learners of one kind of tasks, of any methods and networks.

    Args:
        learners: at least two, on one device.

    Raises:
        SettingError: fewer, or of classification and regression both.
    """

    def __init__(self, learners: Sequence[Learner]) -> None:
        if len(learners) < 2:
            raise SettingError("learners", len(learners), "at least two are needed")
        kinds = {learner.kind for learner in learners}
        if len(kinds) > 1:
            raise SettingError("learners", sorted(kinds), "one kind of tasks is needed")
        self.learners = tuple(learners)
        self.kind = learners[0].kind

    def __len__(self) -> int:
        return sum(learner.network.count or 1 for learner in self.learners)

    @property
    def needs(self) -> str:
        """``"features"`` where all take tasks of any number of classes."""
        needs = {learner.needs for learner in self.learners}
        return "features" if needs == {"features"} else "logits"

    def score(
        self,
        tasks: TaskBatch,
        *,
        inductive: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> TaskScores:
        """Scores of the mean prediction, and of each network: see `Learner.score`.

        Learners that differ in their inner steps are compared after the last of each.
        """
        rows: list[tuple[Tensor, Tensor]] = []
        for learner in self.learners:
            rows += outputs_of_networks(
                learner, tasks, steps=None, inductive=inductive, check=check
            )
        if len({losses.shape[1] for losses, _ in rows}) > 1:
            rows = [(losses[:, -1:], outputs[:, -1:]) for losses, outputs in rows]
        return scores_of_members(self.kind, rows, tasks.query[1])

    def adapt(self, support: Batch, *, transductive: bool = False) -> nn.Module:
        """What answers as all adapted networks do, ``[M, B, C]``; see `Learner.adapt`."""
        modules = [one.adapt(support, transductive=transductive) for one in self.learners]
        return _Together(modules)


class CombinedMetaTrainers:
    """Finished trainings on tasks, scored as one on the tasks of the first.

    Args:
        trainers: at least two, whose tasks have the same inputs.

    Raises:
        SettingError: tasks of other inputs or another kind.
    """

    def __init__(self, trainers: Sequence[MetaTrainer]) -> None:
        self.trainers = tuple(trainers)
        self.learner = CombinedLearners([trainer.learner for trainer in trainers])
        first = trainers[0]
        self.tasks, self.device, self.meta_batch = first.tasks, first.device, first.meta_batch
        self.step = max(trainer.step for trainer in trainers)
        wanted = TaskShapes.of(self.tasks).input_shape
        for trainer in trainers:
            shape = TaskShapes.of(trainer.tasks).input_shape
            if shape != wanted:
                accepted = f"inputs {list(wanted)} are needed, as the first run has"
                raise SettingError("input_shape", list(shape), accepted)

    @property
    def data_checksum(self) -> str | None:
        """Of the data of the tasks that are scored."""
        return self.trainers[0].data_checksum

    @property
    def members(self) -> list[int]:
        """Of each network, the number of the trainer that it is of."""
        counts = [trainer.learner.network.count or 1 for trainer in self.trainers]
        return [number for number, count in enumerate(counts) for _ in range(count)]

    def task_scores(
        self, count: int = 600, *, split: Split = "test", inductive: bool = False
    ) -> TaskScores:
        """See `MetaTrainer.task_scores`.

        Raises:
            SettingError: a class of these tasks that another of the trainings has in another split.
        """
        check_whole("count", count, 1)
        check_split(split)
        self._check_classes(split)
        scores = self._scores(split, range(count), inductive=inductive)
        check_tasks(scores, split)
        return scores

    def report_of(
        self,
        scores: TaskScores,
        *,
        split: Split = "test",
        inductive: bool = False,
        conformal: ConformalSets | None = None,
    ) -> TestReport:
        """See `MetaTrainer.report_of`."""
        sets = None
        if conformal is not None:
            check_has_classes(scores.queries, conformal)
            count = len(scores.losses)
            first = max(count, *(trainer.validation_tasks for trainer in self.trainers))
            indices = range(first, first + count)
            known = self._scores("validation", indices, inductive=inductive)
            assert known.queries is not None  # as those of the test
            sets = CalibratedSets(conformal, known.queries)
        few = self.tasks.sample(split, [0], device=self.device)
        found = common_normalization(self.learner.learners, few, inductive=inductive)
        parts = by_set(self.tasks, split, scores)
        return task_report(scores, found, inductive=inductive, sets=sets, parts=parts)

    def reports(
        self,
        split: Split = "test",
        *,
        tasks: int = 600,
        inductive: bool | None = True,
        conformal: ConformalSets | None = None,
    ) -> dict[str, TestReport]:
        """See `MetaTrainer.reports`."""
        found = {}
        for name in ("transductive", "inductive") if inductive else ("transductive",):
            alone = name == "inductive"
            scores = self.task_scores(tasks, split=split, inductive=alone)
            how: Any = {"split": split, "conformal": conformal}
            found[name] = self.report_of(scores, inductive=alone, **how)
        return found

    def _scores(self, split: Split, indices: range, *, inductive: bool) -> TaskScores:
        parts, what = [], f"{split}, inductive" if inductive else split
        with stretch(what, len(indices), "tasks") as tell:
            for start in range(0, len(indices), self.meta_batch):
                some = indices[start : start + self.meta_batch]
                batch = self.tasks.sample(split, some, device=self.device)
                parts.append(self.learner.score(batch, inductive=inductive))
                tell(len(some))
        return joined_scores(parts)

    def _check_classes(self, split: Split) -> None:
        """Refuse classes on which one of the others may have been trained."""
        wanted = _classes(self.tasks, split)
        for trainer in self.trainers[1:]:
            every = {s: _classes(trainer.tasks, s) for s in ("train", "validation", "test")}
            wrong = set().union(*(names & wanted for s, names in every.items() if s != split))
            if wrong:
                accepted = f"trainings are needed that have the same classes in the {split} split"
                raise SettingError("run", min(wrong), accepted)


class _Together(nn.Module):
    """Adapted modules, of which some are ensembles."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.several = nn.ModuleList(modules)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``[M, B, C]``."""
        found = [
            module(inputs) if isinstance(module, Ensemble) else module(inputs)[None]
            for module in self.several
        ]
        return torch.cat(found)


def _classes(tasks: Any, split: str) -> set[str]:
    """Names of the classes of a split; none of tasks without such data."""
    data: Any = getattr(tasks, "data", None)
    splits = getattr(data, "splits", None)
    if splits is None or not hasattr(data, "class_names"):
        return set()
    return {data.class_names[c] for c in splits.get(split, ())}
