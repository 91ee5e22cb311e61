"""What ``evaluate`` finds of a trained run: scores of a split or of given episodes, confusions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor

from metalearn.cli.given_settings import plain_value
from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.tasks import Episode, read_episodes
from metalearn.trainers.meta.confused import (
    NamedTask,
    confusion_lines,
    confusions_of,
    draw_confusions,
    named_tasks,
)
from metalearn.trainers.meta.episode_scores import check_episodes, score_episodes
from metalearn.trainers.meta.normalization import common_normalization
from metalearn.trainers.meta.uncertainty import ConformalSets
from metalearn.trainers.report import Report

__all__ = ["Evaluated", "conformal_sets", "evaluated_episodes", "evaluated_tasks"]

_PROTOCOLS = ("transductive", "inductive")


@dataclass
class Evaluated:
    """Scores by name, and what stands beside them.

    Attributes:
        reports: by name.
        entries: further entries of the JSON file.
        lines: further lines of the table.
        figures: by the name of their file.
    """

    reports: Mapping[str, Report]
    entries: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)


def evaluated_tasks(trainer: Any, config: DictConfig) -> Evaluated:
    """Scores of a split; with ``confusions``, those of its tasks, whose queries are alone."""
    asked = conformal_sets(config)
    if not config.confusions:
        how = {} if asked is None else {"conformal": asked}
        return Evaluated(trainer.reports(config.split, tasks=config.tasks, **how))
    split, count = config.split, config.tasks
    scores = {
        name: trainer.task_scores(count, split=split, inductive=name == "inductive")
        for name in _PROTOCOLS
    }
    reports = {
        name: trainer.report_of(found, split=split, inductive=name == "inductive", conformal=asked)
        for name, found in scores.items()
    }
    found = Evaluated(reports)
    predictions = scores["inductive"].predictions[:, -1]
    tasks = lambda: named_tasks(trainer.tasks, split, count)  # noqa: E731
    _add_confusions(found, tasks, predictions, config.confusions, f"confusions-{split}")
    return found


def conformal_sets(config: DictConfig) -> ConformalSets | None:
    """The sets of classes that are asked for.

    Raises:
        SettingError: a coverage or rule that there is not, or a rule alone.
    """
    coverage, rule = (plain_value(config.conformal[key]) for key in ("coverage", "rule"))
    if coverage is None:
        if rule is not None:
            accepted = "conformal.coverage is needed beside it, such as 0.9"
            raise SettingError("conformal.rule", rule, accepted)
        return None
    try:
        return ConformalSets(coverage, rule or "thr")
    except SettingError as error:
        raise SettingError(f"conformal.{error.setting}", error.value, error.accepted) from None


def evaluated_episodes(trainer: Any, saved: DictConfig, config: DictConfig) -> Evaluated:
    """Scores of the episodes in a folder.

    Raises:
        SettingError, DataError: episodes that cannot be read, or that the learner does not take.
    """
    episodes = read_episodes(config.episodes, **_reading(trainer, saved, config))
    learner, tasks = trainer.learner, trainer.tasks
    learners = getattr(learner, "learners", (learner,))
    check_episodes(learner, episodes, way=tasks.outputs, input_shape=tasks.input_shape)
    how: Any = {"device": trainer.device, "at_once": trainer.meta_batch}
    scores = {
        name: score_episodes(learner, episodes, inductive=name == "inductive", **how)
        for name in _PROTOCOLS
    }
    each = {name: found.each(episodes) for name, found in scores.items()}
    entries = [
        {**_about(episode), **{name: each[name][index] for name in _PROTOCOLS}}
        for index, episode in enumerate(episodes)
    ]
    first = tree_map(lambda value: value.to(trainer.device), episodes[0].task)
    reports = {
        name: several.report(common_normalization(learners, first, inductive=several.inductive))
        for name, several in scores.items()
    }
    found = Evaluated(reports, {"episodes": entries})
    if config.confusions:
        named = [NamedTask.of_episode(episode) for episode in episodes]
        name = f"confusions-episodes-{Path(config.episodes).resolve().name}"
        predictions = scores["inductive"].predictions
        _add_confusions(found, lambda: named, predictions, config.confusions, name)
    return found


def _about(episode: Episode) -> dict[str, Any]:
    sizes = {"support": len(episode.support[1]), "query": len(episode.query[1])}
    return {"name": episode.name, "way": episode.way, **sizes}


def _reading(trainer: Any, saved: DictConfig, config: DictConfig) -> dict[str, Any]:
    """How pictures are read, as those that the run was trained on."""
    shape: Sequence[int] = trainer.tasks.input_shape
    if len(shape) != 3 or shape[1] != shape[2] or trainer.tasks.kind != "classification":
        accepted = f"null is needed: the run's inputs {list(shape)} are no square pictures"
        raise SettingError("episodes", config.episodes, accepted)
    strokes = saved.task["_target_"] == "metalearn.tasks.omniglot_tasks"
    own = saved.task.get("invert", strokes)
    invert = own if config.invert is None else config.invert
    sizes = {"image_size": shape[1], "channels": shape[0]}
    return {**sizes, "invert": bool(invert), "area": strokes}


def _add_confusions(
    found: Evaluated,
    tasks: Callable[[], Iterable[NamedTask]],
    predictions: Iterable[Tensor],
    most: int,
    name: str,
) -> None:
    counts = confusions_of(tasks(), predictions)
    several = counts.most_frequent(most)
    found.lines += confusion_lines(counts, several)
    found.entries["confusions"] = {
        "errors": counts.errors,
        "queries": counts.queries,
        "most_frequent": [confusion.as_json() for confusion in several],
    }
    figure = draw_confusions(several, tasks())
    if figure is not None:
        found.figures[name] = figure
