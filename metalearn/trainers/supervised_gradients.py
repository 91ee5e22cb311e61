"""Losses and gradients of an ensemble's members on labelled batches.

Axes: M members, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core.ensemble import MemberEngine, MemberGradients, member_gradients
from metalearn.core.tree import tree_map
from metalearn.models import Ensemble, Stack
from metalearn.trainers.base import StepReport

__all__ = ["supervised_gradients"]


def supervised_gradients(
    ensemble: Ensemble,
    batch: tuple[Tensor, Tensor],
    smoothing: Tensor,
    chosen: Tensor,
    *,
    engine: MemberEngine,
    chunk_size: int | None,
) -> StepReport:
    """Cross-entropy of the chosen members and its gradients; running statistics move.

    Members that are not chosen have a loss of NaN and a gradient of zero, or none where no member
    of their stack is chosen; nothing of theirs is changed.

    Args:
        ensemble: in training mode.
        batch: ``x [B, ...]`` and ``y [B]``, or each with M in front.
        smoothing: ``[M]``, of the targets.
        chosen: ``[M]``, bool, on the CPU.
        engine: see `metalearn.core.ensemble.MemberEngine`.
        chunk_size: members at a time; None is all.
    """
    x, y = batch
    losses = torch.full((len(ensemble),), float("nan"), device=x.device)
    grads: dict[str, Tensor] = {}
    for number, stack in enumerate(ensemble.stacks):
        assert isinstance(stack, Stack)
        members = torch.tensor(stack.indices)
        rows = chosen[members].nonzero().flatten()
        if not len(rows):
            continue
        mine = members[rows].to(x.device)
        own = y.dim() == 2
        run = partial(
            member_gradients,
            _loss_of(stack),
            in_dims=(0, *(0 if own else None,) * 2, 0),
            engine=engine,
            chunk_size=chunk_size,
        )
        data = (x[mine], y[mine]) if own else (x, y)
        found = _of_rows(run, stack, rows.to(x.device), *data, smoothing[mine])
        losses[mine] = found.losses.to(losses.dtype)
        grads |= {f"stacks.{number}.network.{name}": g for name, g in found.grads.items()}
    known = losses[chosen.to(x.device)]
    return StepReport(
        known.mean(), grads, len(known) * y.shape[-1], lambda: "their batches", losses
    )


def _of_rows(
    run: Callable[..., MemberGradients], stack: Stack, rows: Tensor, *args: Tensor
) -> MemberGradients:
    """Gradients of some rows of a stack as ``[M, ...]``, zero in the others."""
    params, buffers = stack.state()
    if len(rows) == stack.size:
        return run(params, buffers, *args)
    some, written = tree_map(lambda value: value.detach()[rows], (params, buffers))
    found = run(some, written, *args)
    _put_rows(buffers, written, rows)
    grads = tree_map(
        lambda g: g.new_zeros(stack.size, *g.shape[1:]).index_copy(0, rows, g), found.grads
    )
    return found._replace(grads=grads)


def _loss_of(stack: Stack) -> Any:
    """Cross-entropy of one member, its targets smoothed by a share of its own."""

    def loss(params: Any, buffers: Any, x: Tensor, y: Tensor, smoothing: Tensor) -> Tensor:
        log_p = stack.call(params, buffers, x).log_softmax(-1)
        value: Tensor = (1 - smoothing) * F.nll_loss(log_p, y) - smoothing * log_p.mean()
        return value

    return loss


def _put_rows(buffers: Mapping[str, Tensor], written: Mapping[str, Tensor], rows: Tensor) -> None:
    for name, buffer in buffers.items():
        if not isinstance(buffer, torch.nn.Parameter):
            buffer[rows] = written[name]
