"""Norms of per-sample gradients without the gradients, and clipping by them.

Axes: N samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.core.chunking import ChunkSize, chunks, resolve_chunk, sample_count
from metalearn.core.ops.decomposed_operations import DecomposedOperations
from metalearn.core.ops.lean_gradient import is_differentiated, lean_gradient
from metalearn.core.precision import norms_of, squares, widened, widened_tree
from metalearn.core.samples.gradients import (
    SampleMethod,
    gradients_taker,
    loss_of_one,
    one_by_one,
    refusing,
)
from metalearn.core.samples.layer_substitution import SampleLayers
from metalearn.core.tree import (
    check_floating,
    flatten,
    leaf_names,
    leaves,
    scale,
    tree_map,
    unflatten,
)
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params

__all__ = [
    "ClippedGradient",
    "clipped_chunk",
    "clipped_gradient",
    "ghost_parameters",
    "per_sample_norms",
]


class ClippedGradient(NamedTuple):
    """A mean of clipped gradients and what was clipped."""

    grads: Params
    """(1/N) Σ g_i·min(1, C/‖g_i‖), a tree like the parameters."""
    norms: Tensor
    """``[N]``: ‖g_i‖ before clipping, in float32 at least."""
    clipped_fraction: Tensor
    """Scalar: the share of samples with ‖g_i‖ > C."""


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

    The gradient of a weight that the loss uses once, in ``F.linear``, ``F.conv2d`` (one group) or
    ``F.embedding``, is not formed: ‖Bᵀ·A‖² follows from the layer's inputs A and output gradients B
    in one backward pass (Goodfellow 2015, arXiv 1510.01799), and that of its bias from B. All other
    parameters (norms, tied weights, …; see `ghost_parameters`) are taken by ``vmap(grad)``.

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
        take = _norms_taker(loss_fn, params, batch, method)
        size = resolve_chunk(take, batch, chunk_size, memory)
        parts = [take(part) for part in chunks(batch, size)]
    found = [torch.cat(pieces) if len(parts) > 1 else pieces[0] for pieces in zip(*parts)]
    if by_leaf:
        return unflatten([s.clamp_min(0).sqrt() for s in found], flatten(params)[1])
    return norms_of(found)


@checked
def clipped_gradient(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    max_norm: float | Tensor,
    chunk_size: ChunkSize = None,
    memory: int | str | None = None,
    method: SampleMethod = "layers",
) -> ClippedGradient:
    """Mean of gradients clipped sample by sample: (1/N) Σ g_i·min(1, C/‖g_i‖), C the ``max_norm``.

    Norms are those of `per_sample_norms`; the sum is one more backward pass, of the losses with
    the clipping factors as weights (Li et al. 2021, arXiv 2110.05679), so that no sample's
    gradient is held. A gradient of zero stays zero; C = ∞ gives the gradient of the batch.

    Args:
        loss_fn: as for `per_sample_gradients`, as are ``params``, ``batch`` and ``memory``.
        params: see there.
        batch: see there.
        max_norm: C, above 0: a number, or a tensor of one, or ``[N]`` with one for each sample.
        chunk_size: samples that are taken at once.
        memory: budget of ``chunk_size="auto"``.
        method: as for `per_sample_norms`.

    Raises:
        SettingError: a ``max_norm`` that is not above 0; as `per_sample_gradients`.
    """
    own = isinstance(max_norm, Tensor) and max_norm.dim() == 1
    shape = [sample_count(batch)] if own else ()
    accepted = "a number above 0 is needed"
    check_number("max_norm", max_norm, above=0, infinite=True, shape=shape, accepted=accepted)
    with refusing(loss_fn, params, batch, method):
        squares_of = _norms_taker(loss_fn, params, batch, method)
        size = resolve_chunk(squares_of, batch, chunk_size, memory)
        total, norms, count = None, [], 0
        for part, limits in chunks((batch, max_norm if own else ()), size):
            limit = limits if own else max_norm
            if method == "loop":
                grads, norm = _clipped_one_by_one(loss_fn, params, part, limit)
            else:
                norm = norms_of(squares_of(part))
                grads = _weighted_gradient(loss_fn, params, part, _factors(norm, limit))
            total = grads if total is None else tree_map(torch.add, total, grads)
            norms.append(norm)
            count += norm.shape[0]
    found = torch.cat(norms)
    clipped = (found > max_norm).to(found.dtype).mean()
    return ClippedGradient(scale(total, 1 / count), found, clipped)


def clipped_chunk(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    memory: int | str | None = None,
    method: SampleMethod = "layers",
) -> int | None:
    """What ``chunk_size="auto"`` comes to in `clipped_gradient`, to be decided once for a training.

    Raises:
        SettingError: as `clipped_gradient`.
    """
    with refusing(loss_fn, params, batch, method):
        return resolve_chunk(_norms_taker(loss_fn, params, batch, method), batch, "auto", memory)


@checked
def ghost_parameters(loss_fn: LossFn, params: Params, batch: Batch) -> dict[str, bool]:
    """For each parameter by name, whether `per_sample_norms` does without its gradients."""
    with refusing(loss_fn, params, batch, "layers"):
        return dict(zip(leaf_names(params), _ghosts(loss_fn, params, batch)))


def _clipped_one_by_one(
    loss_fn: LossFn, params: Params, batch: Batch, max_norm: float | Tensor
) -> tuple[Params, Tensor]:
    """The sum of clipped gradients, one of which is held at a time, and norms ``[N]``."""
    total, norms = None, []
    own = isinstance(max_norm, Tensor) and max_norm.dim() == 1
    for i, grads in enumerate(one_by_one(loss_fn, params, batch)):
        norm = norms_of([squares(g[None]) for g in leaves(grads)])
        limit = max_norm[i] if own else max_norm  # type: ignore[index]
        part = scale(widened_tree(grads), _factors(norm, limit)[0])
        total = part if total is None else tree_map(torch.add, total, part)
        norms.append(norm)
    return tree_map(lambda t, p: t.to(p.dtype), total, params), torch.cat(norms)


def _norms_taker(
    loss_fn: LossFn, params: Params, batch: Batch, method: SampleMethod
) -> Callable[[Batch], list[Tensor]]:
    """The function from a batch to squared norms ``[N]`` of each parameter's gradients."""

    def by_loop(batch: Batch) -> list[Tensor]:
        rows = [
            [squares(g[None]) for g in leaves(grads)]
            for grads in one_by_one(loss_fn, params, batch)
        ]
        return [torch.cat(column) for column in zip(*rows)]

    if method == "loop":
        return by_loop
    if method == "vmap":
        exact = gradients_taker(loss_fn, params, method)
        return lambda batch: [squares(g) for g in leaves(exact(batch))]
    ghosts = _ghosts(loss_fn, params, batch)
    loss = loss_of_one(loss_fn, params)

    def take(batch: Batch) -> list[Tensor]:
        layers = SampleLayers(
            leaves(params),
            lambda i, _: ghosts[i],
            lambda layer, x, dz: layer.squared_norms(widened(x), widened(dz)),
            lambda layer, dz: layer.squared_bias_norms(widened(dz)),
        )
        grads = layers.gradients(loss, batch)
        return [layers.measured[i][0] if ghosts[i] else squares(g) for i, g in enumerate(grads)]

    return take


def _ghosts(loss_fn: LossFn, params: Params, batch: Batch) -> list[bool]:
    """Which parameters belong to one layer call and to nothing else, seen on one sample."""
    check_floating(params, "params")
    values, _ = flatten(params)
    alone = [True] * len(values)
    for _ in range(2):  # a bias has to be asked for again where its weight was not alone
        layers = SampleLayers(
            values,
            lambda i, layer, alone=alone: alone[i],  # type: ignore[misc]
            lambda layer, x, dz: dz.new_zeros(()),
            lambda layer, dz: dz.new_zeros(()),
        )
        layers.gradients(loss_of_one(loss_fn, params), next(chunks(batch, 1)))
        calls = [len(layers.measured.get(i, ())) for i in range(len(values))]
        alone = [count == 1 and i not in layers.reached for i, count in enumerate(calls)]
        if all(alone[i] for i, count in enumerate(calls) if count):
            break
    return alone


def _weighted_gradient(loss_fn: LossFn, params: Params, batch: Batch, weights: Tensor) -> Params:
    """Σ c_i g_i for weights c ``[N]``."""
    values, spec = flatten(params)
    loss = loss_of_one(loss_fn, params)
    keep = is_differentiated([*values, *leaves(batch)])

    def weighted(values: list[Tensor]) -> Tensor:
        with DecomposedOperations(-1 if keep else None):
            losses = widened(torch.func.vmap(loss, in_dims=(None, 0))(values, batch))
            return torch.dot(losses, weights.to(losses.dtype))

    grads = lean_gradient(weighted, values, keep_graph=keep)
    return unflatten([torch.zeros_like(v) if g is None else g for g, v in zip(grads, values)], spec)


def _factors(norms: Tensor, max_norm: float | Tensor) -> Tensor:
    """min(1, C/‖g‖), 1 where the norm is zero."""
    safe = torch.where(norms > max_norm, norms, torch.ones_like(norms))
    return torch.where(norms > max_norm, max_norm / safe, torch.ones_like(norms))
