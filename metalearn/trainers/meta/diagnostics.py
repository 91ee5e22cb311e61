"""What diagnostics can see of meta-training.

Axes: M members, T tasks, N samples of a support set, K inner steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from metalearn.core import Adaptation
from metalearn.core.curvature.likelihood import LikelihoodName
from metalearn.core.meta.adapt import last_of
from metalearn.core.tree import leaves, tree_map
from metalearn.trainers.diagnostics import (
    DiagnosisData,
    DiagnosticSource,
    GradientUnits,
    ModelSource,
    PredictiveModels,
    UnitSource,
    batch_dependence,
    sample_blocks,
    within_budget,
)
from metalearn.trainers.members.gradient_units import member_units
from metalearn.trainers.meta.objective import MetaBatch
from metalearn.trainers.meta.protocol import Learner
from metalearn.types import LossFn, Params, TaskBatch, offers

__all__ = ["TaskSource", "adapted_models", "diagnosis_sources", "shot_units", "task_units"]

_LIKELIHOODS: dict[str, LikelihoodName] = {
    "classification": "categorical",
    "regression": "gaussian",
}

Chunks = Iterator[Mapping[str, Tensor]]


class TaskSource:
    """A `DiagnosticSource` of a meta-training: shots, tasks, members, adapted models.

    Args:
        learner: whose gradients they are.
        clip_norm: beyond which gradients are clipped.
        active: ``[M]``, which members are still trained.
    """

    def __init__(self, learner: Learner, *, clip_norm: float, active: Callable[[], Tensor]) -> None:
        self.learner, self.clip_norm, self.active = learner, clip_norm, active

    def diagnostic_kinds(self) -> dict[str, str]:
        """Shots of each task, tasks, members where there are some, adapted models."""
        learner: Any = self.learner
        looped = "" if learner.vectorized else "vmap cannot take this module, which runs in a loop"
        alone = looped or batch_dependence(learner.module)
        found = {"task": ""}
        if offers(learner, AdaptsParameters):
            still = "" if learner.adapting() else "no parameter adapts (maml.frozen)"
            found = {"shot": alone or still, **found, "predictive": alone, "loss": looped}
        return found | ({} if learner.network.count is None else {"member": ""})

    def gradient_units(
        self, kind: str, batch: MetaBatch, grads: Mapping[str, Tensor]
    ) -> GradientUnits:
        """Shots by the inner gradient at the initial parameters, tasks by the meta-gradient."""
        if kind == "member":
            return member_units(self.active(), grads, clip_norm=self.clip_norm)
        if kind == "shot":
            return shot_units(self.learner, batch.tasks)
        labels = [str(index) for index in batch.indices]
        return task_units(
            self.learner, batch.tasks, clip_norm=self.clip_norm, labels=labels, step=batch.step
        )

    def predictive_models(self, batch: MetaBatch) -> Iterator[PredictiveModels]:
        """Learners that are adapted to the tasks of a step, on the query sets."""
        return adapted_models(self.learner, batch.tasks)


class AdaptsParameters(Protocol):
    """A learner with an inner loop on parameters."""

    inner_steps: int
    eval_steps: int

    def sample_loss(self, params: Params, batch: Any) -> Tensor:
        """Inner loss of a batch of one sample."""

    def adapting(self) -> list[str]:
        """Names of the parameters that the inner loop changes."""

    def adaptation(self, start: Params, steps: int | None = None) -> Adaptation:
        """K inner steps from a starting point."""


def shot_units(learner: Any, tasks: TaskBatch) -> GradientUnits:
    """Each support sample's gradient at the initial parameters, tasks apart (members too).

    Only parameters that adapt take part.
    """
    count, shots = leaves(tasks.support)[0].shape[:2]
    adapting = learner.adapting()

    def loss_of(fixed: Any) -> LossFn:
        return lambda params, batch: learner.sample_loss({**fixed, **params}, batch)

    def blocks() -> Iterator[Chunks]:
        for row in map(learner.network.own, learner.network.rows()):
            spread = {n: v.detach().expand(count, *v.shape) for n, v in row.items()}
            moving = {n: v for n, v in spread.items() if n in adapting}
            fixed = {n: v for n, v in spread.items() if n not in adapting}
            yield from sample_blocks(loss_of, moving, fixed, tasks.support)

    return GradientUnits("shot", blocks, int(shots))


def task_units(
    learner: Learner,
    tasks: TaskBatch,
    *,
    clip_norm: float,
    labels: Sequence[str],
    step: int = 0,
) -> GradientUnits:
    """Each task's meta-gradient at a training step; one population, or one for each member."""
    count = len(leaves(tasks)[0])
    chunk = learner.batching[1] or count

    def chunks(row: Params) -> Chunks:
        alone = {name: value[None] for name, value in row.items()}
        _, fits = within_budget(alone, 1, count)
        size = min(chunk, fits)
        for start in range(0, count, size):
            few = tree_map(lambda x, at=start: x[at : at + size], tasks)
            grads = learner.task_gradients(row, few, step=step)
            yield {name: grad[None] for name, grad in grads.items()}

    return GradientUnits(
        "task", lambda: map(chunks, learner.network.rows()), count, clip_norm, labels
    )


def adapted_models(
    learner: Any, tasks: TaskBatch, *, steps: int | None = None
) -> Iterator[PredictiveModels]:
    """Learners adapted to each task, on its query set; one after another where there are members.

    Args:
        learner: whose parameters are the starting point.
        tasks: T.
        steps: K; None takes ``maml.inner_steps``.
    """
    count = learner.inner_steps if steps is None else steps
    variance, likelihood = 1.0, _LIKELIHOODS[learner.kind]
    if learner.kind == "regression":  # of mse_loss: the mean over outputs of squared errors
        variance = math.prod(tasks.query[1].shape[2:]) / 2
    outputs_of: Callable[[Any], Any] = lambda _: (  # noqa: E731
        lambda params, inputs: learner.apply(params, learner.buffers, inputs)
    )
    for row in learner.network.rows():

        def adapted(support: Any, row: Params = row) -> Params:
            own = learner.network.own(row)
            return last_of(learner.adaptation(row, count).trajectory(own, support)).params

        own = learner.network.own(row)
        params = torch.vmap(adapted)(tasks.support)
        models = len(tasks.query[1])
        moved = {n: v.expand(models, *own[n].shape).contiguous() for n, v in params.items()}
        yield PredictiveModels(outputs_of, moved, {}, tasks.query, likelihood, variance)


def diagnosis_sources(
    learner: Learner, tasks: TaskBatch, data: DiagnosisData
) -> Iterator[tuple[str, DiagnosticSource]]:
    """Models at each place, on the query sets, and meta-gradients of the tasks."""
    for place in data.places if offers(learner, AdaptsParameters) else ():
        adapted = learner.eval_steps if data.inner_steps is None else data.inner_steps
        rows = list(adapted_models(learner, tasks, steps=0 if place == "initial" else adapted))
        for number, models in enumerate(rows):
            member = f"/member_{number:02d}" if len(rows) > 1 else ""
            yield f"{place}{member}", ModelSource(models, learner.module, data.models_at_once)
    labels = [str(index) for index in range(len(leaves(tasks)[0]))]
    yield (
        "meta_gradients",
        UnitSource(task_units(learner, tasks, clip_norm=math.inf, labels=labels)),
    )
