"""What an attribution of a meta-learner has found, held together for those who look at it.

Axes: T test tasks, Q queries, S support examples, N training tasks, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metalearn.attribution.findings import SIGN, Findings
from metalearn.attribution.found_samples import TargetSamples, TrainingExamples, check_shape
from metalearn.attribution.ranking import Ranked, most_harmful, most_helpful
from metalearn.attribution.scored_learner import ADAPTATION, LEFT_OUT
from metalearn.attribution.trained_tasks import TrainedTasks
from metalearn.core.checks import check_pair
from metalearn.core.targets import mean_without_padding, real_samples
from metalearn.errors import SettingError, check_whole
from metalearn.evaluation.seeds import SeedMean
from metalearn.signatures import check_fields
from metalearn.tracking.provenance import plain
from metalearn.types import TaskBatch

__all__ = ["LearnerFindings"]

_WORDS = {
    ADAPTATION: "the gradient through adaptation",
    LEFT_OUT: "adapting without the example",
}


@dataclass(frozen=True, eq=False)
class LearnerFindings:
    """All that an attribution of one meta-learner has found; tensors and plain values alone.

    Queries and support examples that are padding (−100) have no part in means and ranks.

    Raises:
        SettingError: shapes that do not fit one another.
    """

    run: str
    """What was explained, such as the run's folder."""
    state: str
    """Which of its networks, in words that follow "the network": ``"after step 400"``."""
    split: str
    """Where the test tasks are from."""
    learner: str
    """The name of its class."""
    numbers: Sequence[int]
    """T, of the test tasks in their split."""
    tasks: TaskBatch
    """Leaves ``[T, S, ...]`` and ``[T, Q, ...]``."""
    losses: Tensor
    """``[T, Q]``, of queries after adaptation; 0 for padding."""
    scores: dict[str, Tensor]
    """Method to ``[T, Q, S]``; positive: without the example the query's loss is higher."""
    probabilities: Tensor | None = None
    """``[T, Q, C]``; None in regression."""
    agreement: SeedMean | None = None
    """Rank correlation of scores with leaving out really, the mean over test tasks."""
    disagreement: dict[str, Tensor] = field(default_factory=dict)
    """Method to ``[T, Q]``: how far members disagree about what mattered, NaN for padding; none of
    one network."""
    trained: TrainedTasks | None = None
    class_names: Sequence[Sequence[str]] | None = None
    """Of the classes of each test task."""
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        count = len(self.numbers)
        check_shape("losses", self.losses, (count, "Q"))
        queries = self.losses.shape[1]
        examples = self._checked_set("support", (count, "S"))
        self._checked_set("query", (count, queries))
        for name, values in self.scores.items():
            check_shape(f"scores[{name}]", values, (count, queries, examples))
        for name, values in self.disagreement.items():
            check_shape(f"disagreement[{name}]", values, (count, queries))
        if not self.scores and self.trained is None:
            raise SettingError("scores", [], "scores of support examples or of tasks are needed")
        if self.trained is not None:
            check_shape("trained.scores", self.trained.scores, (count, "N"))
        if self.class_names is not None and len(self.class_names) != count:
            raise SettingError("class_names", len(self.class_names), f"{count} are needed")

    def _checked_set(self, name: str, shape: tuple[Any, ...]) -> int:
        """How many samples the sets of tasks have."""
        inputs, labels = check_pair(getattr(self.tasks, name), f"tasks.{name}")
        check_shape(f"labels of tasks.{name}", labels, (*shape, ...))
        samples = int(labels.shape[1])
        check_shape(f"inputs of tasks.{name}", inputs, (shape[0], samples, ...))
        return samples

    @property
    def task_count(self) -> int:
        """T."""
        return len(self.numbers)

    @property
    def real_queries(self) -> Tensor:
        """``[T, Q]``: which are no padding."""
        return real_samples(self.tasks.query[1])

    @property
    def real_examples(self) -> Tensor:
        """``[T, S]``: which are no padding."""
        return real_samples(self.tasks.support[1])

    @property
    def task_losses(self) -> Tensor:
        """``[T]``: mean losses of the queries of each task."""
        return mean_without_padding(self.losses, self.real_queries)

    @property
    def method(self) -> str | None:
        """By which examples are shown: through adaptation, where that is possible."""
        return next(iter(self.scores), None)

    def words(self, method: str) -> str:
        """What a method does."""
        return _WORDS.get(method, method)

    def of_task(self, place: int) -> Findings:
        """Queries and support examples of one test task, as targets and examples.

        Padding is no target; among the examples it keeps its place and has scores of NaN.
        """
        rows, real = self.real_queries[place].nonzero().flatten(), self.real_examples[place]
        query = tuple(part[place][rows] for part in self.tasks.query)
        support = tuple(part[place] for part in self.tasks.support)
        chances = None if self.probabilities is None else self.probabilities[place][rows]
        names = None if self.class_names is None else list(self.class_names[place])
        if names is not None and chances is not None:
            names += [str(number) for number in range(len(names), chances.shape[1])]
            names = names[: chances.shape[1]]
        return Findings(
            run=self.run,
            state=self.state,
            split=f"{self.split} task {self.numbers[place]}, query",
            targets=TargetSamples(query[1], self.losses[place][rows], rows, query[0], chances),
            examples=TrainingExamples(support[1], support[0]),
            scores={
                name: values[place][rows].masked_fill(~real, torch.nan)
                for name, values in self.scores.items()
            },
            class_names=names,
        )

    def trained_ranks(self, place: int, count: int) -> tuple[Ranked, Ranked]:
        """The most helpful and the most harmful training tasks, by their places among the N."""
        assert self.trained is not None
        row = self.trained.scores[place]
        return most_helpful(row, count), most_harmful(row, count)

    def as_json(self, *, top: int = 10) -> dict[str, Any]:
        """The numbers that a person wants a year later, in JSON's own types.

        Args:
            top: how many of the most helpful and of the most harmful.

        Raises:
            SettingError: a count below 1.
        """
        check_whole("top", top, 1)
        found = plain(
            {
                "run": self.run,
                "state": self.state,
                "split": self.split,
                "learner": self.learner,
                "tasks": self.task_count,
                "queries": self.losses.shape[1],
                "support_examples": len(self.tasks.support[1][0]),
                "training_tasks": 0 if self.trained is None else len(self.trained.numbers),
                "scores": SIGN,
                "warnings": list(self.warnings),
                "methods": {name: self._method(name) for name in self.scores},
                "correlation_with_leaving_out": None
                if self.agreement is None
                else {"mean": self.agreement.mean, "interval95": self.agreement.interval95},
                "of_tasks": [self._of_task(place, top) for place in range(self.task_count)],
                "seconds": self.seconds,
                "settings": self.settings,
                "provenance": self.provenance,
            }
        )
        assert isinstance(found, dict)
        return found

    def _method(self, name: str) -> dict[str, Any]:
        apart = self.disagreement.get(name)
        return {
            "what": self.words(name),
            "seconds": self.seconds.get(name),
            "disagreement_of_members": None if apart is None else float(apart.nanmean()),
        }

    def _of_task(self, place: int, top: int) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "task": self.numbers[place],
            "loss": float(self.task_losses[place]),
        }
        if self.scores:
            one = self.of_task(place)
            entry["of_queries"] = [one.of_target(row, top) for row in range(one.target_count)]
        if self.disagreement:
            entry["disagreement_of_members"] = {
                name: float(values[place].nanmean()) for name, values in self.disagreement.items()
            }
        if self.trained is not None:
            names = ("most_helpful_tasks", "most_harmful_tasks")
            for name, ranked in zip(names, self.trained_ranks(place, top)):
                entry[name] = [
                    {"task": self.trained.numbers[n], "score": score}
                    for n, score in zip(ranked.examples, ranked.scores)
                ]
        return entry
