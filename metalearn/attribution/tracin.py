"""TracIn: what steps of gradient descent on an example did to the losses of others.

Axes: C checkpoints, R targets, N examples.
Source: Pruthi et al., "Estimating Training Data Influence by Tracing Gradient Descent", NeurIPS
2020 (TracInCP).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from metalearn.attribution.gradient_passes import GradientPasses, check_batches, detached
from metalearn.core.checks import check_number
from metalearn.core.chunking import ChunkSize, sample_count
from metalearn.core.samples.gradients import SampleMethod
from metalearn.core.samples.norms import per_sample_norms
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params

__all__ = ["check_checkpoints", "tracin_scores", "tracin_self_influence"]


@checked
def tracin_scores(
    loss_fn: LossFn,
    checkpoints: Sequence[Params],
    targets: Batch,
    examples: Batch,
    *,
    learning_rates: Sequence[float],
    parameters: str | Sequence[str] | None = None,
    chunk_size: ChunkSize = "auto",
    memory: int | str | None = None,
    method: SampleMethod = "layers",
) -> Tensor:
    """Scores ``[R, N]``: Σ_c η_c · ⟨∇ℓ_r(θ_c), ∇ℓ_i(θ_c)⟩.

    To first order, by how much a step of gradient descent on example i alone at every checkpoint
    lowers the loss of target r, in units of the loss. Positive: a helpful example. Gradients of
    matrices are not formed where layers' inputs and output gradients give their products sooner.

    Args:
        loss_fn: ``loss_fn(params, batch)``, a mean loss; it is given batches of one sample.
        checkpoints: C trees of parameters θ_c.
        targets: a batch of R samples, whose losses are explained.
        examples: a batch of N samples that were trained on.
        learning_rates: C numbers η_c; with the share of the training that a checkpoint stands for
            (steps · rate / batch size) the scores sum up to what the training did.
        parameters: patterns of those whose gradients are taken, such as ``"head.*"``; by default
            all. ``params`` and ``frozen`` of other functions are matched the same way.
        chunk_size: samples whose gradients are held at once; ``"auto"`` takes as many as ``memory``
            has room for and is not for use inside vmap; None takes all.
        memory: bytes for ``chunk_size="auto"``, a number or ``"1GB"``; half of what is free by
            default.
        method: as for `metalearn.core.per_sample_gradients`.

    Raises:
        SettingError: no checkpoint, another number of learning rates; what
            `metalearn.core.per_sample_gradients` refuses.
    """
    check_checkpoints(checkpoints, learning_rates)
    check_batches(targets, examples)

    def at(params: Params, rate: float) -> Tensor:
        passes = GradientPasses.of(loss_fn, params, parameters, chunk_size, memory, method)
        return rate * passes.gram(targets, examples)

    return reduce(torch.add, map(at, checkpoints, learning_rates))


@checked
def tracin_self_influence(
    loss_fn: LossFn,
    checkpoints: Sequence[Params],
    examples: Batch,
    *,
    learning_rates: Sequence[float],
    parameters: str | Sequence[str] | None = None,
    chunk_size: ChunkSize = "auto",
    memory: int | str | None = None,
    method: SampleMethod = "layers",
) -> Tensor:
    """Scores ``[N]`` of the examples on themselves, Σ_c η_c · ‖∇ℓ_i(θ_c)‖².

    The diagonal of `tracin_scores` where the targets are the examples. It is large for examples
    that only they themselves explain, such as those with wrong labels.

    Args:
        loss_fn: as for `tracin_scores`, as is all else.
        checkpoints: the same.
        examples: the same.
        learning_rates: the same.
        parameters: the same.
        chunk_size: the same.
        memory: the same.
        method: the same.

    Raises:
        SettingError: as `tracin_scores`.
    """
    check_checkpoints(checkpoints, learning_rates)
    sample_count(examples, "examples")

    def at(params: Params, rate: float) -> Tensor:
        passes = GradientPasses.of(loss_fn, params, parameters, chunk_size, memory, method)
        norms = per_sample_norms(
            passes.loss_fn, passes.params, detached(examples),
            chunk_size=chunk_size, memory=memory, method=method,
        )  # fmt: skip
        return rate * norms.square()

    return reduce(torch.add, map(at, checkpoints, learning_rates))


def check_checkpoints(checkpoints: Sequence[Params], learning_rates: Sequence[float]) -> None:
    """Refuse no checkpoint, and another number of learning rates than there are of them."""
    if not len(checkpoints):
        raise SettingError("checkpoints", 0, "at least one is needed")
    if len(learning_rates) != len(checkpoints):
        needed = f"one for each of {len(checkpoints)} checkpoints is needed"
        raise SettingError("learning_rates", len(learning_rates), needed)
    for number, rate in enumerate(learning_rates):
        check_number(f"learning_rates[{number}]", rate, least=0)
