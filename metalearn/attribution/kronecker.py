"""Influence functions whose curvature is inverted in a Kronecker-factored eigenbasis.

Axes: R targets, N examples, P parameters.
Sources: as of `metalearn.attribution.influence`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import vmap

from metalearn.attribution.gradient_passes import GradientPasses, check_batches
from metalearn.core.checks import check_number
from metalearn.core.chunking import ChunkSize, chunks, sample_count
from metalearn.core.curvature.kfac import KroneckerFisher
from metalearn.core.curvature.probes import layer_parameters
from metalearn.core.samples.gradients import SampleMethod
from metalearn.core.tree import check_floating, leaves, tree_map
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params

__all__ = ["kronecker_influence", "kronecker_self_influence"]


@checked
def kronecker_influence(
    loss_fn: LossFn,
    params: Params,
    targets: Batch,
    examples: Batch,
    *,
    fisher: KroneckerFisher,
    damping: float,
    targets_at_once: int | None = None,
    parameters: str | Sequence[str] | None = None,
    chunk_size: ChunkSize = "auto",
    memory: int | str | None = None,
    method: SampleMethod = "layers",
) -> Tensor:
    """Scores ``[R, N]``: (1/N) · ∇ℓ_rᵀ · (F + λI)⁻¹ · ∇ℓ_i, F of Kronecker factors.

    −dℓ_r/dw_i to first order with F for the Hessian, in units of the loss: positive for a helpful
    example. The inverse is exact; F leaves out what is between layers.

    Args:
        loss_fn: as for `tracin_scores`, as are ``targets`` and ``examples``; the examples are all
            N that the mean loss was trained on.
        params: θ, a dict as `metalearn.core.functionalize` gives.
        targets: see there.
        examples: see there.
        fisher: as `metalearn.core.fisher_kfac` gives of the same module and examples, best with
            ``corrected=True``; layers that are not chosen are left out.
        damping: λ, above 0; a tenth of the mean eigenvalue, ``0.1 * fisher.trace() / P``, is usual.
        targets_at_once: whose products with the inverse are held at once, R by default.
        parameters: patterns of those that are taken to move, whole layers such as ``"head.*"``.
        chunk_size: samples of one pass, as for `tracin_scores`, as are ``memory`` and ``method``.
        memory: see there.
        method: see there.

    Raises:
        SettingError: a damping that is not above 0, parameters that F has no factors of; what
            `metalearn.core.per_sample_gradients` refuses.
    """
    _, count = check_batches(targets, examples)
    if targets_at_once is not None:
        check_whole("targets_at_once", targets_at_once, 1)
    passes = GradientPasses.of(loss_fn, params, parameters, chunk_size, memory, method)
    solve = _inverse(fisher, damping, passes.params)
    rows = []
    for some in chunks(targets, targets_at_once):
        rows.append(passes.products(solve(passes.whole(some)), examples) / count)
    return torch.cat(rows)


@checked
def kronecker_self_influence(
    loss_fn: LossFn,
    params: Params,
    examples: Batch,
    *,
    fisher: KroneckerFisher,
    damping: float,
    parameters: str | Sequence[str] | None = None,
    chunk_size: ChunkSize = "auto",
    memory: int | str | None = None,
    method: SampleMethod = "layers",
) -> Tensor:
    """Scores ``[N]`` of the examples on themselves: (1/N) · ∇ℓ_iᵀ · (F + λI)⁻¹ · ∇ℓ_i.

    The diagonal of `kronecker_influence` where the targets are the examples. It is large for
    examples that only they themselves explain, such as those with wrong labels.

    Args:
        loss_fn: as for `kronecker_influence`, as is all else.
        params: the same.
        examples: the same.
        fisher: the same.
        damping: the same.
        parameters: the same.
        chunk_size: the same.
        memory: the same.
        method: the same.

    Raises:
        SettingError: as `kronecker_influence`.
    """
    count = sample_count(examples, "examples")
    passes = GradientPasses.of(loss_fn, params, parameters, chunk_size, memory, method)
    solve = _inverse(fisher, damping, passes.params)

    def of_chunk(grads: Params) -> Tensor:
        pairs = zip(leaves(grads), leaves(solve(grads)))
        return torch.stack([(g * x).flatten(1).sum(1) for g, x in pairs]).sum(0)

    return torch.cat([of_chunk(grads) for grads in passes.formed(examples)]) / count


def _inverse(fisher: KroneckerFisher, damping: float, params: Params) -> Callable[[Params], Params]:
    """(F + λI)⁻¹ of trees with leaves ``[n, ...]`` like the chosen parameters."""
    check_number("damping", damping, above=0, accepted="a number above 0 is needed")
    check_floating(fisher.blocks, "fisher")
    if not isinstance(params, dict):
        raise SettingError("params", type(params).__name__, "a dict of parameters is needed")
    found = {name: layer_parameters(name, params) for name in fisher.blocks}
    covered = {key for names in found.values() if names for key in names}
    for name in params:
        if name not in covered:
            accepted = f"factors of {name} are needed, or parameters= without it"
            raise SettingError("fisher", list(fisher.blocks), accepted)
    blocks = {n: b for n, b in fisher.blocks.items() if found[n] is not None}
    chosen = KroneckerFisher(tree_map(torch.detach, blocks))
    return vmap(lambda grads: chosen.inverse_product(grads, damping=damping))
