"""TRAK: each network taken for a logistic regression on randomly projected gradients.

Axes: M models, R targets, N examples, C classes, P parameters, k numbers of a projection.
Source: Park et al., "TRAK: Attributing Model Behavior at Scale", ICML 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn.attribution.gradient_passes import GradientPasses, check_batches
from metalearn.attribution.projections import ProjectionKind, gradient_projections
from metalearn.attribution.pruning import check_logits, check_models
from metalearn.core.checks import call_given, check_number, check_pair
from metalearn.core.chunking import ChunkSize, chunks, resolve_chunk
from metalearn.core.curvature.fisher_problem import OutputsFn
from metalearn.core.samples.gradients import SampleMethod
from metalearn.core.samples.reductions import Reduction
from metalearn.core.tree import leaves
from metalearn.errors import NonFiniteError, SettingError
from metalearn.random_streams import check_seed
from metalearn.signatures import checked
from metalearn.types import Batch, Params

__all__ = ["trak_scores"]


@checked
def trak_scores(
    outputs_fn: OutputsFn,
    models: Sequence[Params],
    targets: Batch,
    examples: Batch,
    *,
    size: int,
    seed: int,
    projection: ProjectionKind = "signs",
    damping: float = 0.0,
    parameters: str | Sequence[str] | None = None,
    chunk_size: ChunkSize = "auto",
    memory: int | str | None = None,
    method: SampleMethod = "layers",
) -> Tensor:
    """Scores ``[R, N]``: (1/M)·Σ_m φ_r·(ΦᵀΦ + λI)⁻¹·φ_i, times (1/M)·Σ_m (1 − p_i).

    φ are projections ``[k]`` of the gradients of the margin f = log(p/(1 − p)) of a sample's own
    class, Φ ``[N, k]`` those of all examples. It is what leaving the example out would lower the
    target's margin by, one Newton step of the logistic regression: positive for a helpful example,
    in units of the margin, to a scale. Several models of different seeds, best each trained on
    another half of the examples, make it much better than one.

    Args:
        outputs_fn: logits ``[N, C]`` of parameters and inputs.
        models: M trees of parameters.
        targets: ``(inputs, labels)`` of R samples.
        examples: ``(inputs, labels)`` of the N samples that were trained on.
        size: k; more than N or P need a damping.
        seed: of the random projections, one for each model.
        projection: ``"signs"``, or ``"sketch"``, which takes less time.
        damping: λ, at least 0, beside sums over the examples.
        parameters: as for `tracin_scores`, as are ``chunk_size``, ``memory`` and ``method``.
        chunk_size: see there.
        memory: see there.
        method: see there.

    Raises:
        NonFiniteError: a gradient of an example that is not finite.
        SettingError: numbers out of range, ΦᵀΦ + λI without an inverse, outputs that are no logits
            of two or more classes, labels out of range.
    """
    check_models(models)
    check_number("damping", damping, least=0)
    check_seed(seed)
    _, count = check_batches(targets, examples)
    _check_size(size, count, damping)
    losses = partial(_margin, outputs_fn)
    total: Any = 0.0
    shortfall: Any = 0.0
    for number, params in enumerate(models):
        passes = GradientPasses.of(losses, params, parameters, chunk_size, memory, method)
        shortfall = shortfall + _shortfall(outputs_fn, params, examples, chunk_size, memory)
        _shortfall(outputs_fn, params, targets, chunk_size, memory)  # looks at their labels
        reduction = gradient_projections(projection, size, seed + number)
        total = total + _without_shortfall(passes, targets, examples, size, reduction, damping)
    found: Tensor = total * shortfall / len(models) ** 2
    return found


def _without_shortfall(
    passes: GradientPasses,
    targets: Batch,
    examples: Batch,
    size: int,
    reduction: Reduction,
    damping: float,
) -> Tensor:
    """φ_r·(ΦᵀΦ + λI)⁻¹·φ_i ``[R, N]`` of one model."""
    _check_size(size, sum(leaf.numel() for leaf in leaves(passes.params)), damping)
    left, right = (passes.reduced(batch, reduction) for batch in (targets, examples))
    found: Tensor = left @ _inverse_times(right, damping)
    return found


def _check_size(size: int, most: int, damping: float) -> None:
    if not damping and isinstance(size, int) and size > most:
        raise SettingError("size", size, f"at most {most} is needed, or a damping above 0")


def _margin(outputs_fn: OutputsFn, params: Params, batch: Batch) -> Tensor:
    """Mean of log(p/(1 − p)), p the probability of a sample's own class."""
    inputs, labels = batch
    logits = outputs_fn(params, inputs)
    own = labels[:, None] == torch.arange(logits.shape[1], device=logits.device)
    others = logits.masked_fill(own, -torch.inf).logsumexp(1)
    margin: Tensor = (torch.where(own, logits, 0.0).sum(1) - others).mean()
    return margin


def _shortfall(
    outputs_fn: OutputsFn,
    params: Params,
    batch: Batch,
    chunk_size: ChunkSize,
    memory: int | str | None,
) -> Tensor:
    """1 − p ``[N]`` of the samples' own classes."""

    def of_batch(batch: Batch) -> Tensor:
        inputs, labels = check_pair(batch, "examples", "inputs, labels")
        logits = check_logits(call_given(outputs_fn, "outputs_fn", params, inputs), labels)
        if logits.shape[1] < 2:
            raise SettingError("outputs_fn", tuple(logits.shape), "two or more classes are needed")
        return 1 - logits.softmax(1).gather(1, labels[:, None].long())[:, 0]

    with torch.no_grad():
        size = resolve_chunk(of_batch, batch, chunk_size, memory)
        return torch.cat([of_batch(part) for part in chunks(batch, size)])


def _inverse_times(rows: Tensor, damping: float) -> Tensor:
    """(ΦᵀΦ + λI)⁻¹·Φᵀ ``[k, N]``."""
    if not bool(rows.isfinite().all()):
        raise NonFiniteError("a gradient of an example is infinite or NaN")
    eye = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    root, failed = torch.linalg.cholesky_ex(rows.mT @ rows + damping * eye)
    least, largest = root.diagonal().square().aminmax()
    if bool(failed) or bool(least <= len(eye) * torch.finfo(rows.dtype).eps * largest):
        needed = "a larger one is needed, or a smaller size: projections of the examples depend"
        raise SettingError("damping", damping, f"{needed} on each other")
    return torch.cholesky_solve(rows.mT, root)
