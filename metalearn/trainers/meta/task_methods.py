"""Methods that all trainers on tasks have; a trainer takes them by name.

Axes: T tasks, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from metalearn.core.memory import check_memory
from metalearn.core.tree import leaves
from metalearn.errors import SettingError, check_whole
from metalearn.random_streams import check_split
from metalearn.signatures import checked
from metalearn.trainers.diagnostics import DiagnosisData, DiagnosticSource
from metalearn.trainers.meta.by_set import by_set
from metalearn.trainers.meta.diagnostics import diagnosis_sources as sources_of
from metalearn.trainers.meta.nan_scores import check_tasks
from metalearn.trainers.meta.normalization import normalization_in
from metalearn.trainers.meta.reports import TestReport, task_report
from metalearn.trainers.meta.scores import TaskScores
from metalearn.trainers.meta.training_draws import drawn_for_training
from metalearn.trainers.meta.uncertainty import CalibratedSets, ConformalSets, check_has_classes
from metalearn.types import Split, TaskBatch

__all__ = ["diagnosis_sources", "report_of", "reports", "scored", "task_scores"]


@checked
def scored(
    self: Any,
    count: int = 600,
    *,
    split: Split = "test",
    inductive: bool = False,
    conformal: ConformalSets | None = None,
) -> TestReport:
    """Mean ± 95 % interval over ``count`` tasks of a split at every inner step 0..K.

    Args:
        self: a trainer.
        count: of tasks.
        split: that they are of.
        inductive: as of `Learner.score`.
        conformal: sets of classes, calibrated on as many validation tasks, others than those
            that chose the best state. They promise their coverage to tasks of the classes of
            validation, and to others as far as those are like them.

    Raises:
        SettingError: a count or split that there is not; sets for a regression, or without
            classes for validation.
    """
    scores: TaskScores = self.task_scores(count, split=split, inductive=inductive)
    how: Any = {"split": split, "inductive": inductive, "conformal": conformal}
    found: TestReport = self.report_of(scores, **how)
    return found


@checked
def task_scores(
    self: Any, count: int = 600, *, split: Split = "test", inductive: bool = False
) -> TaskScores:
    """Scores of each of the first ``count`` tasks of a split at every inner step 0..K."""
    check_whole("count", count, 1)
    check_split(split)
    scores: TaskScores = self.evaluator.score(split, count, inductive=inductive)
    check_tasks(scores, split)
    return scores


def report_of(
    self: Any,
    scores: TaskScores,
    *,
    split: Split = "test",
    inductive: bool = False,
    conformal: ConformalSets | None = None,
) -> TestReport:
    """What `task_scores` of a split come to; ``conformal`` is as of `scored`."""
    sets = None
    if conformal is not None:
        check_has_classes(scores.queries, conformal)
        sets = _sets(self, conformal, len(scores.losses), inductive=inductive)
    few = self.tasks.sample(split, [0], device=self.device)
    found = normalization_in(self.learner, few, inductive=inductive)
    parts = by_set(self.tasks, split, scores)
    return task_report(scores, found, inductive=inductive, sets=sets, parts=parts)


def reports(
    self: Any,
    split: Split = "test",
    *,
    tasks: int = 600,
    inductive: bool | None = True,
    conformal: ConformalSets | None = None,
) -> dict[str, TestReport]:
    """See `Trainer.reports`: scores with statistics shared by a task's queries, and alone.

    ``conformal`` is as of `scored`.
    """
    if inductive is None:
        inductive = self.evaluator.select_by == "inductive"
    names = ("transductive", "inductive") if inductive else ("transductive",)
    how: Any = {"split": split, "conformal": conformal}
    return {n: self.test(tasks, inductive=n == "inductive", **how) for n in names}


def diagnosis_sources(self: Any, data: DiagnosisData) -> Iterator[tuple[str, DiagnosticSource]]:
    """Initial or adapted learners on tasks of a split, and the tasks' meta-gradients."""
    draw = _draws_of(self, data.split)
    one = leaves(draw([0]))
    size = sum(part.numel() * part.element_size() for part in one)
    check_memory("tasks", data.tasks, size * data.tasks, self.device)
    tasks = draw(range(data.tasks))
    return sources_of(self.learner, tasks, data)


def _sets(self: Any, asked: ConformalSets, count: int, *, inductive: bool) -> CalibratedSets:
    if not self.validated:
        raise SettingError("conformal", "sets", "trainer.validation=public is needed for them")
    first = max(self.evaluator.count, count)
    known = self.evaluator.score("validation", count, inductive=inductive, first=first)
    assert known.queries is not None  # of a classification, as those of the test
    return CalibratedSets(asked, known.queries)


def _draws_of(self: Any, split: Split) -> Callable[[Sequence[int]], TaskBatch]:
    """Tasks of a split by number; what a learner of samples is trained on is in one alone."""
    if self.learner.draws == "tasks":
        return partial(self.tasks.sample, split, device=self.device)
    if split != "train":
        accepted = "train is needed: the learner's gradients are of samples of its classes"
        raise SettingError("split", split, accepted)
    return lambda indices: drawn_for_training(self.learner, self.tasks, indices, self.device)
