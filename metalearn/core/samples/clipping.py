"""Means of gradients that are clipped sample by sample.

Axes: N samples, K groups of parameters that are clipped by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.core.chunking import ChunkSize, chunks, resolve_chunk, sample_count
from metalearn.core.precision import squares, widened_tree
from metalearn.core.samples.clipping_groups import Clipping, ParameterGroups
from metalearn.core.samples.clipping_rule import ClippingRule, clipping_rule
from metalearn.core.samples.gradients import SampleMethod, one_by_one, refusing
from metalearn.core.samples.norms import collector_of
from metalearn.core.tree import flatten, leaves, scale, tree_map, unflatten
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params

__all__ = ["ClippedGradient", "clipped_chunk", "clipped_gradient"]


class ClippedGradient(NamedTuple):
    """A mean of clipped gradients and what was clipped."""

    grads: Params
    """(1/N) Σ g_i·min(1, C/‖g_i‖), a tree like the parameters."""
    norms: Tensor
    """``[N]``: ‖g_i‖ before clipping, in float32 at least."""
    clipped_fraction: Tensor
    """Scalar: the share of samples with ‖g_i‖ > C; of groups, of samples and groups."""
    losses: Tensor
    """``[N]``: the loss of each sample, in the same forward pass."""


@checked
def clipped_gradient(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    max_norm: float | Tensor,
    clipping: Clipping = "flat",
    groups: ParameterGroups = "all",
    chunk_size: ChunkSize = None,
    memory: int | str | None = None,
    method: SampleMethod = "layers",
) -> ClippedGradient:
    """Mean of gradients clipped sample by sample: (1/N) Σ g_i·min(1, C/‖g_i‖), C the ``max_norm``.

    Norms are those of `per_sample_norms`; the sum is made of the same inputs and output gradients
    of layers, weighted by the clipping factors (book-keeping; Bu et al., "Differentially Private
    Optimization on Large Model at Small Cost", ICML 2023), so that there is one forward and one
    backward pass and no sample's gradient is held. Where a trial on a few samples shows that the
    loss of a batch takes them side by side, these are ordinary passes over the whole batch, watched
    at every operation; otherwise, and inside transforms, they run under ``vmap``. A gradient of
    zero stays zero; C = ∞ gives the gradient of the batch.

    Args:
        loss_fn: as for `per_sample_gradients`, as are ``params``, ``batch`` and ``memory``.
        params: see there.
        batch: see there.
        max_norm: C, above 0: a number, or a tensor of one, or ``[N]`` with one for each sample.
        clipping: ``"flat"``; or ``"automatic"``, in which every gradient counts with nearly the
            same norm, g_i·C/(‖g_i‖ + 0.01), whatever C is (Bu et al., "Automatic Clipping:
            Differentially Private Deep Learning Made Easier and Stronger", NeurIPS 2023).
        groups: of parameters that are clipped by themselves, each of K to C/√K, so that no sample's
            whole is longer than C: ``"all"`` is one group; ``"layers"`` one for each layer's
            parameters, of one name but for the last part; or names with patterns of dotted names,
            the parameters of no pattern being a group of their own.
        chunk_size: samples that are taken at once.
        memory: budget of ``chunk_size="auto"``.
        method: as for `per_sample_norms`.

    Raises:
        SettingError: a ``max_norm`` that is not above 0, a pattern that matches nothing or what
            another has; as `per_sample_gradients`.
    """
    rule = clipping_rule(params, clipping, groups)
    own = isinstance(max_norm, Tensor) and max_norm.dim() == 1
    shape = [sample_count(batch)] if own else ()
    accepted = "a number above 0 is needed"
    check_number("max_norm", max_norm, above=0, infinite=True, shape=shape, accepted=accepted)
    with refusing(loss_fn, params, batch, method):
        take = _taker(loss_fn, params, method, rule)
        size = resolve_chunk(lambda part: take(part, 1.0), batch, chunk_size, memory)
        total, norms, losses = None, [], []
        for part, limits in chunks((batch, max_norm if own else ()), size):
            grads, norm, loss = take(part, limits if own else max_norm)
            total = grads if total is None else tree_map(torch.add, total, grads)
            norms.append(norm)
            losses.append(loss)
    found = torch.cat(norms)
    clipped = (found > rule.limits(max_norm)).to(found.dtype).mean()
    whole = found[:, 0] if rule.count == 1 else found.square().sum(1).sqrt()
    return ClippedGradient(scale(total, 1 / len(found)), whole, clipped, torch.cat(losses))


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
        take = _taker(loss_fn, params, method, ClippingRule("flat", [0] * len(leaves(params))))
        return resolve_chunk(lambda part: take(part, 1.0), batch, "auto", memory)


def _taker(
    loss_fn: LossFn, params: Params, method: SampleMethod, rule: ClippingRule
) -> Callable[[Batch, float | Tensor], tuple[Params, Tensor, Tensor]]:
    """The function from a batch and C to sums of clipped gradients, norms ``[N, K]``, losses."""
    if method == "loop":
        return lambda batch, limit: _clipped_one_by_one(loss_fn, params, batch, limit, rule)
    take = collector_of(loss_fn, params, method, norms_and_sums=True)
    spec = flatten(params)[1]

    def clipped(batch: Batch, max_norm: float | Tensor) -> tuple[Params, Tensor, Tensor]:
        found = take(batch)
        norms = rule.norms(found.squared_norms())
        grads = found.weighted_gradient(rule.factors(norms, max_norm))
        return unflatten(grads, spec), norms, found.losses

    return clipped


def _clipped_one_by_one(
    loss_fn: LossFn, params: Params, batch: Batch, max_norm: float | Tensor, rule: ClippingRule
) -> tuple[Params, Tensor, Tensor]:
    """The same, with one gradient held at a time."""
    total, norms, losses = None, [], []
    own = isinstance(max_norm, Tensor) and max_norm.dim() == 1
    for i, (grads, loss) in enumerate(one_by_one(loss_fn, params, batch)):
        norm = rule.norms([squares(g[None]) for g in leaves(grads)])
        limit = max_norm[i] if own else max_norm  # type: ignore[index]
        values, spec = flatten(widened_tree(grads))
        factors = rule.factors(norm, limit)
        part = unflatten([g * c[0] for g, c in zip(values, factors)], spec)
        total = part if total is None else tree_map(torch.add, total, part)
        norms.append(norm)
        losses.append(loss)
    grads = tree_map(lambda t, p: t.to(p.dtype), total, params)
    return grads, torch.cat(norms), torch.stack(losses)
