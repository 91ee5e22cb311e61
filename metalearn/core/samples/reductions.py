"""What is wanted of per-sample gradients, computed chunk by chunk, so that few are held at once.

Gradients of fewer than 32 bits are reduced in float32, and so are their results.
Axes: N samples, n samples of a chunk, P parameters, k numbers of a sketch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.core.chunking import ChunkSize, chunks, resolve_chunk
from metalearn.core.precision import norms_of, squares, widened, widened_tree
from metalearn.core.samples.gradients import SampleMethod, gradients_taker, refusing
from metalearn.core.tree import leaves, scale, tree_map
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params

__all__ = [
    "Reduction",
    "gradient_mean",
    "gradient_norms",
    "gradient_sketches",
    "gradient_variance",
    "norm_quantiles",
    "reduce_per_sample",
]


class Reduction(NamedTuple):
    """A pure triple that sees the gradients chunk by chunk.

    Written for one model; where there are many, tensors of a state are mapped over them and what
    else it holds (a count) is the same for all.
    """

    init: Callable[[Params], Any]
    """``init(params)``: the state before the first chunk."""
    update: Callable[[Any, Params], Any]
    """``update(state, grads)`` for gradients ``[n, ...]``: the next state."""
    finish: Callable[[Any], Any]
    """``finish(state)``: the result."""


@checked
def reduce_per_sample(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    reductions: Mapping[str, Reduction],
    *,
    chunk_size: ChunkSize = "auto",
    memory: int | str | None = None,
    method: SampleMethod = "layers",
) -> dict[str, Any]:
    """Several reductions of g_1 … g_N in one pass over chunks of samples.

    Args:
        loss_fn: as for `per_sample_gradients`, as are ``params``, ``batch`` and ``method``.
        params: see there.
        batch: see there.
        reductions: by name, such as ``{"norms": gradient_norms()}``.
        chunk_size: gradients that are held at once; ``"auto"`` is not for use inside vmap.
        memory: budget of ``chunk_size="auto"``.
        method: see there.

    Returns:
        The result of each reduction, by name.

    Raises:
        SettingError: as `per_sample_gradients`.
    """
    take = gradients_taker(loss_fn, params, method)
    with refusing(loss_fn, params, batch, method):
        size = resolve_chunk(take, batch, chunk_size, memory)
    states = {name: reduction.init(params) for name, reduction in reductions.items()}
    for part in chunks(batch, size):
        with refusing(loss_fn, params, batch, method):
            grads = take(part)
        states = {name: reductions[name].update(state, grads) for name, state in states.items()}
    return {name: reductions[name].finish(state) for name, state in states.items()}


@checked
def gradient_mean() -> Reduction:
    """ḡ = (1/N) Σ g_i, a tree like the parameters."""
    return Reduction(_no_moments, _add_moments, lambda state: state[1])


@checked
def gradient_variance() -> Reduction:
    """(1/(N−1)) Σ (g_i − ḡ)², element by element; NaN where N is 1.

    Chunks are merged as in Chan, Golub and LeVeque, 1979.
    """

    def finish(state: Any) -> Any:
        count, _, squares = state
        return scale(squares, 1 / (count - 1) if count > 1 else torch.nan)

    return Reduction(_no_moments, _add_moments, finish)


@checked
def gradient_norms() -> Reduction:
    """‖g_i‖ ``[N]``."""
    return Reduction(
        lambda _: [],
        lambda state, grads: [*state, norms_of(list(map(squares, leaves(grads))))],
        lambda state: torch.cat(state),
    )


@checked
def norm_quantiles(q: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> Reduction:
    """Quantiles of ‖g_i‖ over samples, ``[len(q)]``, interpolated linearly; NaN if a norm is.

    Raises:
        SettingError: quantiles outside of 0 to 1, or none.
    """
    if not q or not all(0 <= level <= 1 for level in q):
        raise SettingError("q", q, "numbers from 0 to 1 are needed")
    init, update, _ = gradient_norms()

    def finish(state: Any) -> Tensor:
        norms = torch.cat(state).sort().values  # torch.quantile is taken one by one under vmap
        at = [level * (len(norms) - 1) for level in q]
        below, above = (norms[[turn(a) for a in at]] for turn in (math.floor, math.ceil))
        found = torch.lerp(below, above, norms.new_tensor([a % 1 for a in at]))
        return torch.where(norms[-1].isnan(), norms[-1], found)

    return Reduction(init, update, finish)


@checked
def gradient_sketches(size: int, *, generator: torch.Generator) -> Reduction:
    """Random projections of the gradients, ``[N, k]``, whose products are those of the gradients.

    s = S·g, each column of S with one entry, ±1, in a random row (count sketch; Charikar, Chen and
    Farach-Colton, 2002): E ⟨s_i, s_j⟩ = ⟨g_i, g_j⟩, with a standard deviation of at most
    √(2/k)·‖g_i‖·‖g_j‖. S takes two numbers for each parameter.

    Args:
        size: k, at least 1.
        generator: draws S, on the CPU.

    Raises:
        SettingError: a size below 1.
    """
    check_whole("size", size, 1)

    def init(params: Params) -> Any:
        columns = []
        for leaf in leaves(params):
            rows = torch.randint(size, (leaf.numel(),), generator=generator)
            signs = 2 * torch.randint(2, (leaf.numel(),), generator=generator) - 1
            columns.append((rows.to(leaf.device), signs.to(leaf.device, widened(leaf).dtype)))
        return columns, []

    def update(state: Any, grads: Params) -> Any:
        columns, found = state
        total = torch.zeros((), device=leaves(grads)[0].device)
        for (rows, signs), grad in zip(columns, leaves(grads)):
            wide = widened(grad).reshape(len(grad), -1)
            empty = wide.new_zeros(len(grad), size)
            total = total + empty.index_add(1, rows, wide * signs)
        return columns, [*found, total]

    return Reduction(init, update, lambda state: torch.cat(state[1]))


def _no_moments(params: Params) -> Any:
    zeros = widened_tree(tree_map(torch.zeros_like, params))
    return 0, zeros, zeros


def _add_moments(state: Any, grads: Params) -> Any:
    """(count, mean, sum of squared deviations) with a chunk more."""
    before, mean, squares = state
    grads = widened_tree(grads)
    new = leaves(grads)[0].shape[0]
    count = before + new
    fresh = tree_map(lambda g: g.mean(0), grads)
    gap = tree_map(torch.sub, fresh, mean)
    spread = tree_map(lambda g, m: (g - m).square().sum(0), grads, fresh)
    mean = tree_map(lambda m, d: m + d * (new / count), mean, gap)
    share = before * new / count
    squares = tree_map(lambda s, add, d: s + add + share * d.square(), squares, spread, gap)
    return count, mean, squares
