"""Scores of a learner on validation tasks, with figures, and on the tasks of any split.

Axes: M members, or 1; T tasks, K inner steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import Ensemble
from metalearn.ranks import OneRank, Ranks, Share
from metalearn.schema import Kind, choice, mapping
from metalearn.stretches import stretch
from metalearn.tasks import outputs_by_split
from metalearn.tracking import Tracker
from metalearn.tracking.figures import adaptation_figure, regression_figure, task_figure
from metalearn.trainers.loop.protocols import Evaluation
from metalearn.trainers.meta.learnt_records import learnt_bands, learnt_curves
from metalearn.trainers.meta.protocol import Learner
from metalearn.trainers.meta.reports import by_step, score_numbers
from metalearn.trainers.meta.scores import TaskScores, joined_scores, mean_interval
from metalearn.types import Split, TaskDistribution

__all__ = ["MetaEvaluator", "SelectBy"]

SelectBy = Literal["transductive", "inductive"]
"""By which score the best state is chosen: of a task's queries together, or of each alone."""

_PREFIXES = {"transductive": "", "inductive": "inductive_"}
"""Of the names of scores."""


class MetaEvaluator:
    """Scores on the same validation tasks each time, before and after adaptation.

    Args:
        learner: that is scored.
        tasks: where tasks come from.
        count: of validation tasks.
        select_by: the score that decides what is best. Inductive ones take the prediction of each
            query beside the support set, and stand beside the transductive ones.
        at_once: tasks at a time.
        device: where tasks are made.
        prepare: decides how tasks are batched, if that has not been decided.
        check: called before every prediction; what it raises ends the scoring.
        ranks: that share the tasks of a scoring, to which all come; None is one process.
        agree: called before every batch of tasks; what ranks have to hear of comes to them there.

    Raises:
        SettingError: another ``select_by``.
    """

    def __init__(
        self,
        learner: Learner,
        tasks: TaskDistribution,
        count: int,
        *,
        select_by: SelectBy = "transductive",
        at_once: int,
        device: torch.device,
        prepare: Callable[[], None],
        check: Callable[[], None],
        ranks: Ranks | None = None,
        agree: Callable[[], None] = lambda: None,
    ) -> None:
        if select_by not in get_args(SelectBy):
            raise SettingError("select_by", select_by, "transductive or inductive is needed")
        self.learner, self.tasks, self.count, self.at_once = learner, tasks, count, at_once
        self.select_by = select_by
        self._ranks: Ranks = ranks or OneRank()
        self._device, self._prepare, self._check = device, prepare, check
        self._agree = agree
        self.larger_is_better = tasks.kind == "classification"
        self._several = isinstance(learner.module, Ensemble)
        score = "accuracy" if self.larger_is_better else "loss"
        name = f"member_{score}" if self._several else f"{score}_after"
        self.monitor = f"validation/{_PREFIXES[select_by]}{name}"

    def __call__(self, step: int) -> Evaluation:
        """Means over the validation tasks, with intervals."""
        protocols = ("transductive", "inductive")[: 1 + (self.select_by == "inductive")]
        scores = {
            name: self.score("validation", self.count, inductive=name == "inductive")
            for name in protocols
        }
        numbers: dict[str, float] = {}
        for name, found in scores.items():
            numbers |= score_numbers(f"validation/{_PREFIXES[name]}", found)
        return Evaluation(numbers, _monitored(scores[self.select_by]), partial(self._draw, scores))

    def score(
        self, split: Split, count: int, *, inductive: bool = False, first: int = 0
    ) -> TaskScores:
        """Scores of ``count`` tasks of a split, from the ``first`` one on."""
        self._prepare()
        share = self._ranks.share if count >= self._ranks.count else Share()
        mine, parts = share.of(range(first, first + count)), []
        what = f"{split}, inductive" if inductive else split
        with stretch(what, len(mine), "tasks") as tell:
            for start in range(0, max(share.sizes(count)), self.at_once):
                self._agree()
                indices = mine[start : start + self.at_once]
                if not indices:
                    break
                batch = self.tasks.sample(split, indices, device=self._device)
                parts.append(self.learner.score(batch, inductive=inductive, check=self._check))
                tell(len(indices))
        found = joined_scores(parts)
        if share.count == 1:
            return found
        sizes = share.sizes(count)
        every: TaskScores = tree_map(
            lambda rows: self._ranks.joined(rows, sizes) if isinstance(rows, Tensor) else rows,
            found,
        )
        return every

    @property
    def bands(self) -> Mapping[str, Sequence[str]]:
        """Of tasks: mean and 95 % interval; of members: median and extremes."""
        scores = ("accuracy", "loss") if self.larger_is_better else ("loss",)
        prefixes = ["train/", "validation/"]
        if self.select_by == "inductive":
            prefixes.append(f"validation/{_PREFIXES['inductive']}")
        tasks = [f"{prefix}{name}_after" for prefix in prefixes for name in scores]
        found = {"95% confidence intervals": tasks}
        if self._several:
            members = [f"{p}member_{n}" for p in prefixes for n in scores]
            found["members: median and extremes"] = members
        return {**found, **learnt_bands(self.learner.network)}

    def state(self) -> dict[str, Any]:
        """What the best scores so far are of, where that is not what it always was."""
        return {} if self.select_by == "transductive" else {"select_by": self.select_by}

    def state_kinds(self) -> list[Kind]:
        """Best scores of another kind cannot be gone on with."""
        kind = {"select_by": choice(self.select_by)}
        return [mapping({}, kind) if self.select_by == "transductive" else mapping(kind)]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Do nothing: it is as it was made."""
        return

    def _draw(self, scores: Mapping[str, TaskScores], tracker: Tracker, step: int) -> None:
        """Figures of a validation: one task, and the adaptation curve."""
        self._draw_task(scores[self.select_by], tracker, step)
        curves = {}
        for protocol, found in scores.items():
            values = found.losses if found.accuracies is None else found.accuracies
            mean, half = mean_interval(values)
            name = "validation" if len(scores) == 1 else f"validation, {protocol}"
            curves[name] = (mean.cpu(), half.cpu())
            rows = {f"{_PREFIXES[protocol]}{k}": v for k, v in by_step(found).items()}
            tracker.curves(step, "validation_by_step", rows)
        name = "accuracy" if self.larger_is_better else "mean squared error"
        way = outputs_by_split(self.tasks)["validation"]
        curve = adaptation_figure(
            curves,
            ylabel=f"query {name}",
            title=f"adaptation on {self.count} validation tasks, step {step}",
            chance=1 / way if self.larger_is_better else None,
            trained_steps=self.learner.inner_steps,
        )
        tracker.figure(step, "validation/adaptation", curve)
        for name, rates in learnt_curves(self.learner.network).items():
            tracker.curves(step, name, rates)

    def _draw_task(self, scores: TaskScores, tracker: Tracker, step: int) -> None:
        """The first validation task; tasks of shapes without a picture are left out."""
        task = self.tasks.sample("validation", [0])
        support, query = ((inputs[0], targets[0]) for inputs, targets in task)
        predictions = scores.predictions[0].cpu()
        title = f"validation task 0, step {step}"
        shape = (self.tasks.kind, len(self.tasks.input_shape), math.prod(self.tasks.input_shape))
        if shape[:2] == ("classification", 3):
            figure = task_figure(support, query, predictions[-1], title=title)
        elif shape == ("regression", 1, 1) and self.tasks.outputs == 1:
            curve: Any = getattr(self.tasks, "curve", None)  # of tasks whose function is known
            truth = None if curve is None else curve("validation", 0)
            ends = (predictions[0], predictions[-1])
            figure = regression_figure(support, query, *ends, title=title, truth=truth)
        else:
            return
        tracker.figure(step, "validation/task", figure)


def _monitored(scores: TaskScores) -> Tensor:
    """``[M]``: mean accuracy (or loss) of each network after adaptation."""
    found = scores if scores.members is None else scores.members
    values = found.losses if found.accuracies is None else found.accuracies
    return values.mean(0)[..., -1].reshape(-1)
