"""What a training step is made of: tasks, or batches of samples of the training classes.

Axes: T tasks, or batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from metalearn.errors import SettingError
from metalearn.trainers.meta.protocol import Learner
from metalearn.trainers.meta.sample_learner import SampleLearner
from metalearn.types import SampleDistribution, TaskBatch, TaskDistribution

__all__ = ["drawn_for_training", "prepare_draws"]


def prepare_draws(learner: Learner, tasks: TaskDistribution, device: torch.device) -> None:
    """Tell a learner of samples how many classes there are; others need nothing.

    Raises:
        SettingError: a learner of samples that is no `SampleLearner`, tasks that have no samples.
    """
    if learner.draws == "tasks":
        return
    if not isinstance(learner, SampleLearner):
        accepted = "tasks is needed, or a subclass of SampleLearner for samples"
        raise SettingError(f"{type(learner).__name__}.draws", learner.draws, accepted)
    if not isinstance(tasks, SampleDistribution):
        accepted = f"tasks with training_samples are needed: {learner.label} is trained on samples"
        raise SettingError("tasks", type(tasks).__name__, accepted)
    one = tasks.sample("train", [0], device=device)
    with torch.no_grad():
        features = learner.outputs(one.support[0][0]).shape[-1]
    learner.learn_classes(tasks.training_classes, int(features))


def drawn_for_training(
    learner: Learner, tasks: Any, indices: Sequence[int], device: torch.device
) -> TaskBatch:
    """Tasks, or batches of samples, by their numbers in the training split, ``[T, ...]``."""
    if isinstance(learner, SampleLearner):
        samples = tasks.training_samples(indices, learner.batch_size, device=device)
        return TaskBatch(samples, samples)
    found: TaskBatch = tasks.sample("train", indices, device=device)
    return found
