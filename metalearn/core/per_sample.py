"""Gradients of every sample of a batch.

The loss is an ordinary mean loss; it sees each sample as a batch of one.
Axes: N samples, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metalearn.core.chunking import ChunkSize, resolve_chunk, sample_count
from metalearn.core.ops.sample_substitution import fast_gradients
from metalearn.core.products import check_mode, check_scalar
from metalearn.core.tree import check_floating, flatten, tree_map, unflatten
from metalearn.types import Batch, LossFn, Params

__all__ = ["SampleMethod", "gradient_of_one", "per_sample_gradients", "single"]

SampleMethod = Literal["layers", "vmap"]


def per_sample_gradients(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    chunk_size: ChunkSize = None,
    memory: int | str | None = None,
    method: SampleMethod = "layers",
) -> Params:
    """Gradient of every sample's loss: g_i = ∇ℓ_i(θ), without a normaliser; their mean over N is
    the gradient of a mean loss.

    Any loss that ``vmap`` takes will do. Where it calls ``F.linear`` or ``F.conv2d`` with a
    parameter as the weight, that parameter's gradients are taken by batched products of the
    layer's inputs and output gradients; all others are taken by ``vmap(grad)``.

    Args:
        loss_fn: ``loss_fn(params, batch)``, a mean loss; it is given batches of one sample.
        params: any tree of floating-point tensors.
        batch: any tree of tensors with a leading sample axis.
        chunk_size: samples that are taken at once; None takes all, ``"auto"`` as many as
            ``memory`` has room for.
        memory: bytes for ``chunk_size="auto"`` beyond the result, a number or ``"1GB"``; half of
            what is free by default.
        method: ``"vmap"`` takes all gradients by ``vmap(grad)``: the reference.

    Returns:
        A tree like ``params`` with leaves ``[N, ...]``.

    Raises:
        SettingError: a batch whose leaves have different lengths, a loss that is not a scalar,
            parameters that are not floating-point tensors, a chunk size that cannot work.
    """
    one = gradient_of_one(loss_fn, params, method)
    mapped = torch.func.vmap(one)
    size = resolve_chunk(mapped, batch, chunk_size, memory)
    return torch.func.vmap(one, chunk_size=size)(batch)


def gradient_of_one(
    loss_fn: LossFn, params: Params, method: SampleMethod = "layers"
) -> Callable[[Batch], Params]:
    """The function from one sample, without a sample axis, to its gradient."""
    check_mode("method", method, get_args(SampleMethod))
    check_floating(params, "params")
    values, spec = flatten(params)

    def of_one(sample: Batch) -> Params:
        def loss(values: list[Tensor]) -> Tensor:
            with fast_gradients(values) if method == "layers" else nullcontext():
                return check_scalar(loss_fn(unflatten(values, spec), single(sample)), "loss_fn")

        return unflatten(torch.func.grad(loss)(values), spec)

    return of_one


def single(sample: Batch) -> Any:
    """One sample as a batch of one."""
    return tree_map(lambda x: x.unsqueeze(0), sample)
