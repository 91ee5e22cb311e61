"""What diagnostics can see of an ensemble on labelled data.

Axes: M members, B samples of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from metalearn.core.curvature.fisher_problem import OutputsFn
from metalearn.core.tree import tree_map
from metalearn.errors import SettingError
from metalearn.models import BatchEnsemble, Ensemble, Stack
from metalearn.trainers.diagnostics import (
    DiagnosisData,
    GradientUnits,
    ModelSource,
    PredictiveModels,
    batch_dependence,
    sample_blocks,
)
from metalearn.trainers.members.gradient_units import member_units
from metalearn.trainers.supervised.batches import LabelledBatch, have_member_axis
from metalearn.trainers.supervised.ensemble_objective import EnsembleObjective
from metalearn.trainers.supervised.losses import CROSS_ENTROPY, SupervisedLoss
from metalearn.trainers.supervised.member_gradients import member_loss
from metalearn.types import LossFn

__all__ = ["EnsembleSource", "member_source"]


class EnsembleSource:
    """Samples of each member with its own loss, the members, and what they predict.

    Args:
        objective: whose members and losses they are of.
        loss: of which likelihood the members' losses are.
    """

    def __init__(self, objective: EnsembleObjective, loss: SupervisedLoss = CROSS_ENTROPY) -> None:
        self._objective, self._ensemble, self._loss = objective, objective.ensemble, loss

    def diagnostic_kinds(self) -> Mapping[str, str]:
        """What there is, as members are in training."""
        self._ensemble.train()
        return member_kinds(self._ensemble, self._loss)

    def gradient_units(
        self, kind: str, batch: LabelledBatch, grads: Mapping[str, Tensor]
    ) -> GradientUnits:
        """Each active member's samples, or the active members."""
        population = self._objective.population
        if kind == "member":
            limit = math.inf if population.clip is None else population.clip
            return member_units(population.active, grads, clip_norm=limit)
        return member_samples(self._objective, batch, population.active)

    def predictive_models(self, batch: LabelledBatch) -> Iterator[PredictiveModels]:
        """Each active member on its batch."""
        active = self._objective.population.active
        return member_models(self._ensemble, batch, active, self._loss)


def member_kinds(ensemble: Ensemble, loss: SupervisedLoss) -> dict[str, str]:
    """What there is, and why not: see `DiagnosticSource.diagnostic_kinds`."""
    several = len(ensemble.stacks) > 1
    apart = "members of one architecture are needed" if several else ""
    alone = apart or batch_dependence(ensemble)
    shared = any(isinstance(layer, BatchEnsemble) for layer in ensemble.modules())
    joined = "members that share weights do not predict apart" if shared else ""
    return {
        "sample": alone,
        "member": apart,
        "predictive": alone or joined or loss.no_likelihood,
        "loss": apart or joined,
    }


def member_source(
    ensemble: Ensemble,
    batch: LabelledBatch,
    data: DiagnosisData,
    loss: SupervisedLoss = CROSS_ENTROPY,
) -> ModelSource:
    """All members of a finished run, in the mode in which the ensemble is.

    Raises:
        SettingError: members that are not models of their own.
    """
    reason = member_kinds(ensemble, loss)["loss"]
    if reason:
        raise SettingError("run", data.run, reason)
    every = torch.ones(len(ensemble), dtype=torch.bool)
    (models,) = member_models(ensemble, batch, every, loss)
    return ModelSource(models, ensemble, data.models_at_once)


def member_samples(
    objective: EnsembleObjective, batch: LabelledBatch, active: Tensor
) -> GradientUnits:
    """Each sample of each active member's batch, by the member's own loss and its weight there.

    `Dropout` layers drop of every sample what they drop of the first one of a batch.
    """
    stack, params, buffers, rows, shown = _shown(objective.ensemble, batch, active)
    shown = (*shown, *(weights[rows] for weights in batch[2:]))
    loss = member_loss(stack, objective.criterion)

    def loss_of(extra: Any) -> LossFn:
        buffers, share = extra
        return lambda params, part: loss(params, buffers, *part[:2], share, *part[2:])

    extra = (buffers, objective.smoothing[rows])

    def blocks() -> Iterator[Iterator[Mapping[str, Tensor]]]:
        return sample_blocks(loss_of, params, extra, shown)

    return GradientUnits("sample", blocks, int(shown[1].shape[1]))


def member_models(
    ensemble: Ensemble, batch: LabelledBatch, active: Tensor, loss: SupervisedLoss
) -> Iterator[PredictiveModels]:
    """The active members, each on its batch, whose samples count alike here."""
    stack, params, buffers, _, shown = _shown(ensemble, batch, active)
    outputs_of: Callable[[Any], OutputsFn] = lambda buffers: (  # noqa: E731
        lambda params, inputs: stack.call(params, buffers, inputs)
    )
    yield PredictiveModels(outputs_of, params, buffers, shown, **loss.of_models())


def _shown(
    ensemble: Ensemble, batch: LabelledBatch, active: Tensor
) -> tuple[Stack, dict[str, Tensor], dict[str, Tensor], Tensor, LabelledBatch]:
    """The one stack, what it has of the active members, which these are, inputs and targets."""
    (stack,) = ensemble.stacks
    assert isinstance(stack, Stack)
    rows = active.nonzero().flatten().to(batch[1].device)  # one stack: in the order of members
    params, buffers = tree_map(lambda v: v.detach()[rows], stack.state())
    x, y = batch[:2]
    if not have_member_axis(y):
        x, y = x.expand(len(rows), *x.shape), y.expand(len(rows), *y.shape)
    else:
        x, y = x[rows], y[rows]
    return stack, params, buffers, rows, (x, y)
