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
from metalearn.types import TaskBatch, TaskDistribution

__all__ = ["drawn_for_training", "prepare_draws"]


def prepare_draws(learner: Learner, tasks: TaskDistribution, device: torch.device) -> None:
    """Tell a learner of samples how many classes there are, others nothing; draws none.

    Raises:
        SettingError: a learner of samples that is no `SampleLearner`, tasks that have no samples.
    """
    if learner.draws == "tasks":
        return
    if not isinstance(learner, SampleLearner):
        accepted = "tasks is needed, or a subclass of SampleLearner for samples"
        raise SettingError(f"{type(learner).__name__}.draws", learner.draws, accepted)
    classes = getattr(tasks, "training_classes", None)
    if classes is None:
        accepted = f"tasks with training_samples are needed: {learner.label} is trained on samples"
        raise SettingError("tasks", type(tasks).__name__, accepted)
    tokens = getattr(tasks, "vocabulary", None) is not None
    kind = torch.int64 if tokens else torch.get_default_dtype()
    example = torch.zeros(2, *tasks.input_shape, dtype=kind, device=device)
    with torch.no_grad():
        features = learner.outputs(example).shape[-1]
    learner.learn_classes(classes, int(features))


def drawn_for_training(
    learner: Learner, tasks: Any, indices: Sequence[int], device: torch.device
) -> TaskBatch:
    """Tasks, or batches of samples, by their numbers in the training split, ``[T, ...]``."""
    if isinstance(learner, SampleLearner):
        samples = tasks.training_samples(indices, learner.batch_size, device=device)
        return TaskBatch(samples, samples)
    found: TaskBatch = tasks.sample("train", indices, device=device)
    return found
