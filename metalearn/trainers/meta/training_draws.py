"""What a training step is made of: tasks, or batches of samples of the training classes.

Axes: T tasks, or batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from metalearn.errors import SettingError
from metalearn.trainers.meta.protocol import Learner
from metalearn.trainers.meta.sample_learner import SampleLearner
from metalearn.types import SampleDistribution, TaskBatch, TaskDistribution

__all__ = ["training_draws"]


def training_draws(
    learner: Learner, tasks: TaskDistribution, device: torch.device
) -> Callable[[Sequence[int]], TaskBatch]:
    """From numbers in the training split to tasks or batches of samples, ``[T, ...]``.

    A learner of samples is told how many classes there are.

    Raises:
        SettingError: a learner of samples that is no `SampleLearner`, tasks that have no samples.
    """
    name = type(learner).__name__
    if learner.draws == "tasks":
        return partial(tasks.sample, "train", device=device)
    if not isinstance(learner, SampleLearner):
        accepted = "tasks is needed, or a subclass of SampleLearner for samples"
        raise SettingError(f"{name}.draws", learner.draws, accepted)
    if not isinstance(tasks, SampleDistribution):
        accepted = f"tasks with training_samples are needed: {learner.label} is trained on samples"
        raise SettingError("tasks", type(tasks).__name__, accepted)
    size, one = learner.batch_size, tasks.sample("train", [0], device=device)
    with torch.no_grad():
        features = learner.outputs(one.support[0][0]).shape[-1]
    learner.learn_classes(tasks.training_classes, int(features))

    def batches(indices: Sequence[int]) -> TaskBatch:
        drawn = tasks.training_samples(indices, size, device=device)
        return TaskBatch(drawn, drawn)

    return batches
