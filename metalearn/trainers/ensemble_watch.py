"""What diagnostics can see of an ensemble on labelled data.

Axes: M members, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from metalearn.core.curvature.fisher_problem import OutputsFn
from metalearn.core.tree import tree_map
from metalearn.models import BatchEnsemble, Ensemble, Stack
from metalearn.trainers.diagnostics import Predictive, Units
from metalearn.trainers.diagnostics.sources import mixing, sample_blocks
from metalearn.trainers.ensemble_gradients import member_loss
from metalearn.types import LossFn

__all__ = ["member_sources", "sample_predictive", "sample_units"]

Pair = tuple[Tensor, Tensor]


def member_sources(ensemble: Ensemble) -> dict[str, str]:
    """Kinds of units, and why not: see `metalearn.trainers.diagnostics.Watched`."""
    several = len(ensemble.stacks) > 1
    apart = "members of one architecture are needed" if several else ""
    alone = apart or mixing(ensemble)
    shared = any(isinstance(layer, BatchEnsemble) for layer in ensemble.modules())
    joined = "members that share weights do not predict apart" if shared else ""
    return {"sample": alone, "member": apart, "predictive": alone or joined}


def sample_units(ensemble: Ensemble, batch: Pair, smoothing: Tensor, active: Tensor) -> Units:
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

    return Units("sample", blocks, int(y.shape[1]))


def sample_predictive(ensemble: Ensemble, batch: Pair, active: Tensor) -> Iterator[Predictive]:
    """The active members, each on its batch."""
    stack, params, buffers, _, shown = _shown(ensemble, batch, active)
    outputs_of: Callable[[Any], OutputsFn] = lambda buffers: (  # noqa: E731
        lambda params, inputs: stack.call(params, buffers, inputs)
    )
    yield Predictive(outputs_of, params, buffers, shown, "categorical")


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
