"""Losses of runs whose samples ranks divide: each computes those of its own, all have the mean.

Everything else of a run, its optimiser and the way back, every rank does alike.
Axes: R ranks, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from metalearn.core.tree import flatten, unflatten
from metalearn.errors import SettingError
from metalearn.models.dropout import part_of_batch
from metalearn.ranks import Ranks, Share, check_enough
from metalearn.ranks.differentiable import spread, total
from metalearn.trainers.hyper.kinds import HyperModule, checked_terms
from metalearn.trainers.supervised.losses import SupervisedLoss
from metalearn.trainers.supervised.network_run import StepBatch
from metalearn.trainers.supervised.run_network import RunNetwork
from metalearn.types import Params

__all__ = ["check_divisible", "shared_inner_loss", "shared_outer_loss"]


def shared_inner_loss(
    hyper: HyperModule,
    network: RunNetwork,
    params: Params,
    in_loss: Mapping[str, Tensor],
    batch: StepBatch,
    ranks: Ranks,
) -> Tensor:
    """`HyperModule.inner_loss`, alike on all ranks, with its derivatives of any order.

    Raises:
        SettingError: fewer examples than ranks.
    """
    if ranks.count == 1:
        return hyper.inner_loss(network, params, in_loss, batch)
    own_params, own_in_loss = _spread(params, ranks), _spread(in_loss, ranks)
    x, y, rows, step = hyper.examples(own_in_loss, batch)
    check_enough("examples of a step of a run", len(x), ranks.share)
    start, stop = ranks.share.bounds(len(x))
    part = x[start:stop], y[start:stop], rows[start:stop], step
    with part_of_batch(start, stop - start):  # masks of dropout are those of the whole batch
        terms = hyper.terms(network, own_params, own_in_loss, part)
    mean = total(checked_terms(terms, stop - start).sum(), ranks) / len(x)
    penalty = hyper.penalty(params, in_loss)
    return mean if penalty is None else mean + penalty


def shared_outer_loss(
    loss: SupervisedLoss, network: RunNetwork, params: Params, x: Tensor, y: Tensor, ranks: Ranks
) -> Tensor:
    """Mean loss in evaluation mode, a scalar, likewise."""
    if ranks.count == 1:
        return loss.mean(network.evaluated(params, x), y)
    own = ranks.share.of(x)
    mean = loss.mean(network.evaluated(_spread(params, ranks), own), ranks.share.of(y))
    return total(mean * len(own), ranks) / len(x)


def check_divisible(hyper: HyperModule, share: Share) -> None:
    """Refuse a loss that is not said to be a mean of samples.

    Raises:
        SettingError: that.
    """
    kind = type(hyper)
    if kind.inner_loss is not HyperModule.inner_loss:
        accepted = (
            f"1 is needed: {kind.__name__}.inner_loss is not known to be a mean of samples; "
            "terms and penalty in its place are divided"
        )
        raise SettingError("ranks", share.count, accepted)


def _spread(tree: Any, ranks: Ranks) -> Any:
    values, spec = flatten(tree)
    return unflatten(spread(values, ranks), spec)
