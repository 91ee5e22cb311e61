"""What diagnostics can see of an ensemble on labelled data.

Axes: M members, B samples of a batch.
"""

from __future__ import annotations

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
from metalearn.trainers.ensemble_gradients import member_loss
from metalearn.types import LossFn

__all__ = ["member_kinds", "member_models", "member_samples", "member_source"]

Pair = tuple[Tensor, Tensor]


def member_kinds(ensemble: Ensemble) -> dict[str, str]:
    """What there is, and why not: see `DiagnosticSource.diagnostic_kinds`."""
    several = len(ensemble.stacks) > 1
    apart = "members of one architecture are needed" if several else ""
    alone = apart or batch_dependence(ensemble)
    shared = any(isinstance(layer, BatchEnsemble) for layer in ensemble.modules())
    joined = "members that share weights do not predict apart" if shared else ""
    return {
        "sample": alone,
        "member": apart,
        "predictive": alone or joined,
        "loss": apart or joined,
    }


def member_source(ensemble: Ensemble, batch: Pair, data: DiagnosisData) -> ModelSource:
    """All members of a finished run, in the mode in which the ensemble is.

    Raises:
        SettingError: members that are not models of their own.
    """
    reason = member_kinds(ensemble)["loss"]
    if reason:
        raise SettingError("run", data.run, reason)
    (models,) = member_models(ensemble, batch, torch.ones(len(ensemble), dtype=torch.bool))
    return ModelSource(models, ensemble, data.models_at_once)


def member_samples(
    ensemble: Ensemble, batch: Pair, smoothing: Tensor, active: Tensor
) -> GradientUnits:
    """Each sample of each active member's batch, by its own smoothed cross-entropy.

    `Dropout` layers drop of every sample what they drop of the first one of a batch.
    """
    stack, params, buffers, rows, (x, y) = _shown(ensemble, batch, active)
    loss = member_loss(stack)

    def loss_of(extra: Any) -> LossFn:
        buffers, share = extra
        return lambda params, part: loss(params, buffers, *part, share)

    extra = (buffers, smoothing[rows])

    def blocks() -> Iterator[Iterator[Mapping[str, Tensor]]]:
        return sample_blocks(loss_of, params, extra, (x, y))

    return GradientUnits("sample", blocks, int(y.shape[1]))


def member_models(ensemble: Ensemble, batch: Pair, active: Tensor) -> Iterator[PredictiveModels]:
    """The active members, each on its batch."""
    stack, params, buffers, _, shown = _shown(ensemble, batch, active)
    outputs_of: Callable[[Any], OutputsFn] = lambda buffers: (  # noqa: E731
        lambda params, inputs: stack.call(params, buffers, inputs)
    )
    yield PredictiveModels(outputs_of, params, buffers, shown, "categorical")


def _shown(
    ensemble: Ensemble, batch: Pair, active: Tensor
) -> tuple[Stack, dict[str, Tensor], dict[str, Tensor], Tensor, Pair]:
    """The one stack, what it has of the active members, which these are, their batches."""
    (stack,) = ensemble.stacks
    assert isinstance(stack, Stack)
    rows = active.nonzero().flatten().to(batch[1].device)  # one stack: in the order of members
    params, buffers = tree_map(lambda v: v.detach()[rows], stack.state())
    x, y = batch
    if y.dim() == 1:
        x, y = x.expand(len(rows), *x.shape), y.expand(len(rows), *y.shape)
    else:
        x, y = x[rows], y[rows]
    return stack, params, buffers, rows, (x, y)
