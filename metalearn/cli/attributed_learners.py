"""What ``attribute`` finds of a meta-learner: support examples of test tasks, and training tasks.

Axes: T test tasks, N training tasks, C states that a run has kept.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from metalearn.attribution.learner_findings import LearnerFindings
from metalearn.attribution.scored_learner import (
    ADAPTATION,
    LEFT_OUT,
    LearnerScores,
    learner_scores,
)
from metalearn.attribution.trained_tasks import TrainedTasks, scored_trained_tasks
from metalearn.cli.attributed_runs import members_of, state_of
from metalearn.cli.given_settings import plain_value
from metalearn.cli.loading import trainer_of
from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.tasks import outputs_by_split
from metalearn.tracking import provenance
from metalearn.trainers import Learner, MetaLearner
from metalearn.types import Params, TaskBatch

__all__ = ["findings_of_learner"]

_TRAINED = "training_tasks"  # the name of their method in seconds and warnings


def findings_of_learner(
    folder: Path, config: DictConfig, saved: DictConfig
) -> tuple[LearnerFindings, LearnerScores, int]:
    """Findings, scores of each member, and after how many steps the learners stood, at most.

    Raises:
        SettingError: a split, member or task that there is not; a learner of which neither support
            examples nor training tasks can be scored.
    """
    trainer: Any = trainer_of(folder, saved, config.checkpoint, config.device)
    members, numbers = members_of(trainer, config), _numbers(config.targets)
    steps = [_step_of(trainer, config.checkpoint, member) for member in members]
    tasks = _sampled(trainer, config.split, numbers)
    found = learner_scores(
        trainer.learner, tasks, members=members, check=config.check, memory=config.memory
    )
    trained = _trained(folder, config, saved, trainer, members, tasks, found)
    if not found.by_member and trained is None:
        reason = "; ".join(dict.fromkeys(found.reasons.values()))
        raise SettingError("run", str(folder), f"nothing of it can be scored: {reason}")
    names = getattr(trainer.tasks, "class_names", None)
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    classes = trainer.tasks.kind == "classification"
    findings = LearnerFindings(
        run=str(folder),
        state=state_of(members, steps),
        split=config.split,
        learner=type(trainer.learner).__name__,
        numbers=numbers,
        tasks=tree_map(Tensor.cpu, tasks),
        losses=found.losses.mean(0),
        scores=found.scores,
        probabilities=found.outputs.softmax(-1).mean(0) if classes else None,
        agreement=found.agreement,
        disagreement=found.disagreement,
        trained=trained,
        class_names=None if names is None else [list(names(config.split, n)) for n in numbers],
        seconds=found.seconds,
        warnings=_warnings(trainer.learner, found),
        settings={str(name): value for name, value in settings.items()},
        provenance=provenance(),
    )
    return findings, found, max(steps)


def _warnings(learner: Learner, found: LearnerScores) -> list[str]:
    """What is left out, but for the inner loop of a learner that has none."""
    natural = not isinstance(learner, MetaLearner) and LEFT_OUT in found.by_member
    return [
        f"left out: {name}: {reason}"
        for name, reason in found.reasons.items()
        if not (natural and name == ADAPTATION)
    ]


def _numbers(asked: Any) -> list[int]:
    """Of test tasks: the first so many, or those that are named."""
    value = plain_value(asked)
    return value if isinstance(value, list) else list(range(value))


def _sampled(trainer: Any, split: str, numbers: Sequence[int]) -> TaskBatch:
    known = list(outputs_by_split(trainer.tasks))
    if split not in known:
        raise SettingError("split", split, f"one of {', '.join(known)} is needed")
    found: TaskBatch = trainer.tasks.sample(split, numbers, device=trainer.device)
    return found


def _step_of(trainer: Any, checkpoint: str, member: int) -> int:
    """After how many steps a learner stood where it is explained."""
    population = trainer.loop.population
    frozen = population.diverged[member] or checkpoint == "best"
    return int(population.best_steps[member]) if frozen else int(trainer.step)


def _trained(
    folder: Path,
    config: DictConfig,
    saved: DictConfig,
    trainer: Any,
    members: Sequence[int],
    targets: TaskBatch,
    found: LearnerScores,
) -> TrainedTasks | None:
    """Scores of training tasks; None where none are asked for, or the learner sees none."""
    asked = plain_value(config.training_tasks)
    if not asked:
        return None
    learner, started = trainer.learner, time.perf_counter()
    if learner.draws != "tasks":
        found.reasons[_TRAINED] = f"{type(learner).__name__} is trained on samples, not on tasks"
        return None
    seen = trainer.step * trainer.settings.accumulate * trainer.meta_batch
    if not seen:
        found.reasons[_TRAINED] = "the learner has not taken a step, so it has seen no task"
        return None
    numbers = asked if isinstance(asked, list) else _spread(seen, asked)
    if max(numbers) >= seen:
        accepted = f"numbers below {seen} are needed: so many tasks were trained on"
        raise SettingError(_TRAINED, max(numbers), accepted)
    names = getattr(trainer.tasks, "class_names", None)
    states = _states(folder, config, saved, trainer)
    rows = [[at.learner.network.rows()[member] for at in states] for member in members]
    try:
        trained = scored_trained_tasks(
            partial(trainer.tasks.sample, "train", device=trainer.device),
            numbers,
            targets,
            gradients_fn=partial(learner.task_gradients, step=trainer.step),
            checkpoints=[[_detached(state) for state in row] for row in rows],
            learning_rates=_rates(trainer, [at.step for at in states]),
            names=None if names is None else partial(names, "train"),
            at_once=max(trainer.meta_batch, len(targets.support[1])),
            memory=config.memory,
        )
    except SettingError as error:
        found.reasons[_TRAINED] = str(error)
        return None
    found.seconds[_TRAINED] = time.perf_counter() - started
    return trained


def _spread(seen: int, count: int) -> list[int]:
    """At most so many numbers of training tasks, evenly from the first to the last."""
    return sorted({int(n) for n in np.linspace(0, seen - 1, min(count, seen)).round()})


def _states(folder: Path, config: DictConfig, saved: DictConfig, trainer: Any) -> list[Any]:
    """Trainers in the states that the run has kept up to that which is explained."""
    if config.checkpoint == "best" or not (folder / "checkpoints" / "best.pt").is_file():
        return [trainer]
    best: Any = trainer_of(folder, saved, "best", config.device)
    return [best, trainer] if 0 < best.step < trainer.step else [trainer]


def _rates(trainer: Any, steps: Sequence[int]) -> list[float]:
    """Of each state: the rates of the steps up to it, over the number of all steps."""
    loop = trainer.loop
    rates = [loop.update.base_rates[0] * trainer.settings.rate(step) for step in range(steps[-1])]
    ends = zip([0, *steps[:-1]], steps)
    return [sum(rates[a:b]) / len(rates) for a, b in ends]


def _detached(params: Params) -> Params:
    found: Params = tree_map(torch.Tensor.detach, params)
    return found
