"""Losses and gradients of an ensemble's members on labelled data.

Axes: M members, B samples of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn.core.ensemble.stacking import MemberEngine, member_gradients
from metalearn.core.loss_checks import unused_parameters
from metalearn.core.tree import tree_map
from metalearn.models import Ensemble, Stack
from metalearn.trainers.loop.pure_calls import PureCalls, as_it_is
from metalearn.trainers.supervised.batches import LabelledBatch, have_member_axis

__all__ = [
    "Criterion",
    "member_loss",
    "smoothed_cross_entropy",
    "supervised_gradients",
    "unused_by_stacks",
]

Criterion = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""From one member's outputs ``[..., B, C]``, targets ``[B]`` or ``[B, D]``, label smoothing and
weights ``[B]`` or None to a mean loss, (1/B)·Σ w_i·ℓ_i."""


def smoothed_cross_entropy(
    outputs: Tensor, targets: Tensor, smoothing: Tensor, weights: Tensor | None = None
) -> Tensor:
    """(1 − s)·CE + s·mean over classes of −log p, s the smoothing of labels.

    Of weighted samples it is (1/B)·Σ w_i·ℓ_i. Where outputs have further axes before ``[B, C]``, as
    those of a `BatchEnsemble`, it is the mean over them.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016.
    """
    # not by log_softmax, whose pass over few classes is slow; the shift has no part in the value
    shifted = outputs - outputs.detach().amax(-1, keepdim=True)
    labels = targets.expand(outputs.shape[:-1]).unsqueeze(-1)
    right, mean = shifted.gather(-1, labels), shifted.mean(-1, keepdim=True)
    losses = shifted.exp().sum(-1, keepdim=True).log() - (right + smoothing * (mean - right))
    if weights is not None:
        losses = losses * weights.to(losses.dtype).unsqueeze(-1)
    return losses.mean()


def supervised_gradients(
    ensemble: Ensemble,
    batch: LabelledBatch,
    *,
    chosen: Tensor,
    smoothing: Tensor,
    engine: MemberEngine,
    chunk_size: int | None,
    criterion: Criterion,
    pure: PureCalls = as_it_is,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of every chosen member, and its gradient.

    Members that are not chosen are not computed: their buffers stay as they are.

    Args:
        ensemble: in training mode.
        batch: inputs ``[B, ...]`` and targets ``[B]`` or ``[B, D]``, or with M in front of both,
            and weights ``[M, B]`` where there are some.
        chosen: ``[M]``, on the CPU.
        smoothing: ``[M]``, in [0, 1).
        engine: see `MemberEngine`.
        chunk_size: members at a time; None takes all.
        criterion: loss of a member's outputs.
        pure: makes the call of each stack's gradients.

    Returns:
        Losses ``[M]``, NaN where not chosen; gradients by the names of the ensemble's parameters,
        ``[M, ...]``, 0 where not chosen.
    """
    losses = smoothing.new_full((len(ensemble),), float("nan"))
    grads: dict[str, Tensor] = {}
    for number, stack in enumerate(ensemble.stacks):
        assert isinstance(stack, Stack)
        members = torch.tensor(stack.indices)
        rows = chosen[members].nonzero().flatten()
        if not len(rows):
            continue
        mine = members[rows].to(smoothing.device)
        found = _of_stack(
            stack,
            rows,
            mine,
            batch,
            smoothing[mine],
            engine=engine,
            chunk_size=chunk_size,
            loss=member_loss(stack, criterion),
            pure=pure,
        )
        losses[mine] = found[0].to(losses.dtype)
        grads |= {f"stacks.{number}.network.{name}": grad for name, grad in found[1].items()}
    return losses, grads


def unused_by_stacks(
    ensemble: Ensemble,
    batch: LabelledBatch,
    smoothing: Tensor,
    criterion: Criterion,
) -> list[str]:
    """Names of parameters that have no part in the loss of their stack's first member.

    Arguments as in `supervised_gradients`; buffers stay as they are.
    """
    found = []
    for number, stack in enumerate(ensemble.stacks):
        assert isinstance(stack, Stack)
        first, own = stack.indices[0], have_member_axis(batch[1])
        params, buffers = tree_map(lambda value: value.detach()[0].clone(), stack.state())
        x, y = (part[first] for part in batch[:2]) if own else batch[:2]
        weights = [part[first] for part in batch[2:]]
        loss = member_loss(stack, criterion)
        names = unused_parameters(loss, params, buffers, x, y, smoothing[first], *weights)
        found += [f"stacks.{number}.network.{name}" for name in names]
    return found


def _of_stack(
    stack: Stack,
    rows: Tensor,
    members: Tensor,
    batch: LabelledBatch,
    smoothing: Tensor,
    *,
    engine: MemberEngine,
    chunk_size: int | None,
    loss: Callable[..., Tensor],
    pure: PureCalls,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The same for some rows of a stack (on the CPU), which are these members."""
    every, own = len(rows) == stack.size, have_member_axis(batch[1])
    params, buffers = stack.state()
    part = _as_slice(rows, members)
    if not every:
        params, buffers = tree_map(lambda v: v.detach()[part], (params, buffers))
    x, y = (part[members] for part in batch[:2]) if own else batch[:2]
    weights = [part[members] for part in batch[2:]]
    taken = partial(
        member_gradients,
        loss,
        in_dims=(0, 0 if own else None, 0 if own else None, 0, *(0 for _ in weights)),
        engine=engine,
        chunk_size=chunk_size,
    )
    found = pure(taken, params, buffers, x, y, smoothing, *weights)
    if every:
        return found.losses, found.grads
    for name, buffer in stack.state()[1].items():  # running statistics that were written
        if not isinstance(buffer, torch.nn.Parameter) and not isinstance(part, slice):
            buffer[part] = buffers[name]
    spread = {n: g.new_zeros(stack.size, *g.shape[1:]) for n, g in found.grads.items()}
    for name, values in spread.items():
        values[part] = found.grads[name]
    return found.losses, spread


def _as_slice(rows: Tensor, like: Tensor) -> Tensor | slice:
    """Rows that follow each other as a slice, which copies nothing; others on a device."""
    numbers = rows.tolist()
    start, stop = numbers[0], numbers[-1] + 1
    return slice(start, stop) if numbers == list(range(start, stop)) else rows.to(like)


def member_loss(
    stack: Stack, criterion: Criterion = smoothed_cross_entropy
) -> Callable[..., Tensor]:
    """Loss of one member's parameters, buffers, inputs, targets, smoothing, perhaps weights."""
    return partial(_member_loss, stack, criterion)


def _member_loss(
    stack: Stack,
    criterion: Criterion,
    params: Mapping[str, Tensor],
    buffers: Any,
    x: Tensor,
    y: Tensor,
    smoothing: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    return criterion(stack.call(params, buffers, x), y, smoothing, weights)
