"""Scores of given episodes, each with its own numbers of classes and pictures.

Axes: T episodes, K inner steps, N queries of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core.targets import IGNORED
from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.stretches import stretch
from metalearn.tasks import Episode
from metalearn.trainers.meta.normalization import Normalization
from metalearn.trainers.meta.reports import TestReport, task_report
from metalearn.trainers.meta.scores import QueryOutcomes, TaskScores, joined_scores
from metalearn.types import TaskBatch

__all__ = ["EpisodeScores", "Scorer", "check_episodes", "score_episodes"]


class Scorer(Protocol):
    """What gives scores of tasks: a learner, or several combined."""

    @property
    def needs(self) -> str:
        """``"features"`` where tasks of any number of classes are taken."""

    def score(self, tasks: TaskBatch, *, inductive: bool = False) -> TaskScores:
        """Scores of T tasks of equal sizes."""


@dataclass(frozen=True)
class EpisodeScores:
    """How given episodes went."""

    scores: TaskScores
    """Of all T, in their order; without predictions, of which each has its own number."""
    predictions: list[Tensor]
    """Of each episode, the predicted classes ``[N]`` after the last inner step."""
    inductive: bool

    def report(self, normalization: Normalization | None = None) -> TestReport:
        """Mean and interval over the episodes, with how their scores are normalised."""
        return task_report(self.scores, normalization, inductive=self.inductive)

    def each(self, episodes: Sequence[Episode]) -> list[dict[str, Any]]:
        """Of each episode, loss and accuracy after the last inner step, and every prediction."""
        assert self.scores.accuracies is not None
        ends = zip(self.scores.losses[:, -1].tolist(), self.scores.accuracies[:, -1].tolist())
        return [
            {
                "loss": loss,
                "accuracy": accuracy,
                "predictions": {
                    file: episode.class_names[c]
                    for file, c in zip(episode.query_files, predictions.tolist())
                },
            }
            for episode, (loss, accuracy), predictions in zip(episodes, ends, self.predictions)
        ]


def check_episodes(
    scorer: Scorer, episodes: Sequence[Episode], *, way: int, input_shape: Sequence[int]
) -> None:
    """Refuse episodes that a learner cannot take.

    Args:
        scorer: that is to take them.
        episodes: given.
        way: classes of the tasks that its network was made for.
        input_shape: of one picture.

    Raises:
        SettingError: names the first such episode.
    """
    for episode in episodes:
        if scorer.needs != "features" and episode.way != way:
            accepted = f"it has {episode.way} classes, and the model was built for {way}"
            raise SettingError("episodes", episode.name, accepted)
        shape = list(episode.support[0].shape[1:])
        if shape != list(input_shape):
            accepted = f"its pictures are {shape}, and the model takes {list(input_shape)}"
            raise SettingError("episodes", episode.name, accepted)


def score_episodes(
    scorer: Scorer,
    episodes: Sequence[Episode],
    *,
    inductive: bool,
    at_once: int = 16,
    device: torch.device | str = "cpu",
) -> EpisodeScores:
    """Scores of all episodes; those of equal sizes are taken together.

    Args:
        scorer: learner, or several.
        episodes: at least one.
        inductive: whether each query is predicted alone beside the support set.
        at_once: episodes at a time.
        device: where the learner is.
    """
    parts, predictions, order = [], {}, []
    most = max(len(e.query[1]) for e in episodes), max(episode.way for episode in episodes)
    what = "scoring, inductive" if inductive else "scoring"
    with stretch(what, len(episodes), "episodes") as tell:
        for indices in _alike(episodes, at_once):
            batch = _joined([episodes[i] for i in indices], device)
            found = scorer.score(batch, inductive=inductive)
            for row, index in enumerate(indices):
                predictions[index] = found.predictions[row, -1].cpu()
            queries = None if found.queries is None else _padded(found.queries, *most)
            none = found.losses.new_zeros(len(indices), 0)
            parts.append(found._replace(predictions=none, queries=queries))
            order += indices
            tell(len(indices))
    back = torch.tensor(order).argsort()
    scores = tree_map(
        lambda value: None if value is None else value[back.to(value.device)], joined_scores(parts)
    )
    return EpisodeScores(scores, [predictions[i] for i in range(len(episodes))], inductive)


def _padded(queries: QueryOutcomes, count: int, way: int) -> QueryOutcomes:
    """With as many queries, those added being padding, and classes, those added never predicted."""
    more, classes = count - queries.labels.shape[1], way - queries.probabilities.shape[-1]
    return QueryOutcomes(
        F.pad(queries.probabilities, (0, classes, 0, more)),
        F.pad(queries.labels, (0, more), value=IGNORED),
    )


def _alike(episodes: Sequence[Episode], at_once: int) -> Iterator[list[int]]:
    """Numbers of episodes that have equal sizes, at most ``at_once`` at a time."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for index, episode in enumerate(episodes):
        size = episode.way, len(episode.support[1]), len(episode.query[1])
        groups.setdefault(size, []).append(index)
    for indices in groups.values():
        for start in range(0, len(indices), at_once):
            yield indices[start : start + at_once]


def _joined(episodes: Sequence[Episode], device: torch.device | str) -> TaskBatch:
    tasks = [episode.task for episode in episodes]
    batch: TaskBatch = tree_map(lambda *values: torch.cat(values).to(device), *tasks)
    ids = torch.arange(episodes[0].way).expand(len(episodes), -1)
    return TaskBatch(batch.support, batch.query, ids)
