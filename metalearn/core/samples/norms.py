"""Norms of per-sample gradients without the gradients.

Axes: N samples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metalearn.core.chunking import ChunkSize, chunks, resolve_chunk
from metalearn.core.precision import norms_of, squares
from metalearn.core.samples.gradients import (
    SampleMethod,
    loss_of_one,
    one_by_one,
    refusing,
    vmapped_gradients,
    whole_loss,
)
from metalearn.core.samples.layer_io import Collected
from metalearn.core.samples.sample_gradients import FormedGradients, SampleGradients
from metalearn.core.samples.structure import collect_covered, structure_of
from metalearn.core.tree import check_floating, flatten, leaf_names, leaves, unflatten
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params

__all__ = ["collector_of", "ghost_parameters", "per_sample_norms"]


@checked
def per_sample_norms(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    by_leaf: bool = False,
    chunk_size: ChunkSize = None,
    memory: int | str | None = None,
    method: SampleMethod = "layers",
) -> Tensor | Params:
    """Euclidean norm of every sample's gradient, ‖g_i‖ ``[N]``, summed in float32 at least.

    Gradients of parameters that the loss uses in operations with a rule (matrix products,
    convolutions, embeddings, normalisation, scales; see `register_layer_rule`) are not formed:
    ‖Bᵀ·A‖² follows from a layer's inputs A and output gradients B in one backward pass (Goodfellow
    2015, arXiv 1510.01799), and so do the inner products between several uses of one parameter;
    that pass is run as `clipped_gradient` runs it. All other parameters (see `ghost_parameters`)
    are taken by ``vmap(grad)``.

    Args:
        loss_fn: as for `per_sample_gradients`, as are ``params``, ``batch`` and ``memory``.
        params: see there.
        batch: see there.
        by_leaf: a tree of norms ``[N]``, one for each parameter, in place of the total.
        chunk_size: samples that are taken at once.
        memory: budget of ``chunk_size="auto"``.
        method: ``"vmap"`` forms all gradients: the reference. ``"loop"`` takes one ordinary
            backward pass after another and holds one gradient at a time.

    Raises:
        SettingError: as `per_sample_gradients`.
    """
    with refusing(loss_fn, params, batch, method):
        take = _norms_taker(loss_fn, params, method)
        size = resolve_chunk(take, batch, chunk_size, memory)
        parts = [take(part) for part in chunks(batch, size)]
    found = [torch.cat(pieces) if len(parts) > 1 else pieces[0] for pieces in zip(*parts)]
    if by_leaf:
        return unflatten([s.clamp_min(0).sqrt() for s in found], flatten(params)[1])
    return norms_of(found)


@checked
def ghost_parameters(loss_fn: LossFn, params: Params, batch: Batch) -> dict[str, bool]:
    """For each parameter by name, whether `per_sample_norms` does without its gradients."""
    with refusing(loss_fn, params, batch, "layers"):
        check_floating(params, "params")
        loss = loss_of_one(loss_fn, params)
        structure = structure_of(loss_fn, loss, leaves(params), batch, anew=True)
    return {name: structure.covers(i) for i, name in enumerate(leaf_names(params))}


def collector_of(
    loss_fn: LossFn, params: Params, method: SampleMethod, **kept: bool
) -> Callable[[Batch], Collected]:
    """The function from a batch to what makes up its gradients, in one backward pass.

    Args:
        loss_fn: as for `per_sample_gradients`.
        params: the same.
        method: ``"layers"`` or ``"vmap"``.
        kept: ``norms_alone`` or ``norms_and_sums``, as for `collect_covered`.
    """
    check_floating(params, "params")
    values, loss, whole = leaves(params), loss_of_one(loss_fn, params), whole_loss(loss_fn, params)

    def by_vmap(batch: Batch) -> Collected:
        grads, losses = vmapped_gradients(loss, values, batch)
        parts: list[list[SampleGradients]] = [[FormedGradients(g)] for g in grads]
        return Collected(losses, parts, [0] * len(parts), [True] * len(parts), values)

    def by_layers(batch: Batch) -> Collected:
        return collect_covered(loss_fn, loss, values, batch, whole=whole, **kept)

    return by_layers if method == "layers" else by_vmap


def _norms_taker(
    loss_fn: LossFn, params: Params, method: SampleMethod
) -> Callable[[Batch], list[Tensor]]:
    """The function from a batch to squared norms ``[N]`` of each parameter's gradients."""
    if method == "loop":
        return lambda batch: _squares_one_by_one(loss_fn, params, batch)
    take = collector_of(loss_fn, params, method, norms_alone=True)
    return lambda batch: take(batch).squared_norms()


def _squares_one_by_one(loss_fn: LossFn, params: Params, batch: Batch) -> list[Tensor]:
    rows = [
        [squares(g[None]) for g in leaves(grads)] for grads, _ in one_by_one(loss_fn, params, batch)
    ]
    return [torch.cat(column) for column in zip(*rows)]
