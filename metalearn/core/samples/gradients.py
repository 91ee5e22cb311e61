"""Gradients of every sample of a batch.

The loss is an ordinary mean loss; it sees each sample as a batch of one.
Axes: N samples, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metalearn.core.autodiff.backend import Eager, Functional
from metalearn.core.autodiff.lean_gradient import is_differentiated
from metalearn.core.autodiff.products import check_mode
from metalearn.core.chunking import ChunkSize, chunks, resolve_chunk
from metalearn.core.loss_checks import (
    UnreachedError,
    check_scalar,
    checked_to_reach,
    outside_inference_mode,
)
from metalearn.core.ops.decomposed_operations import DecomposedOperations
from metalearn.core.samples.class_weights import KeptClassWeights
from metalearn.core.samples.layer_io import collect
from metalearn.core.samples.layer_rules import LayerCall
from metalearn.core.samples.sample_gradients import FormedGradients, SampleGradients
from metalearn.core.tree import check_floating, flatten, tree_map, unflatten
from metalearn.core.vectorization import no_transform_active, vectorizing
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params

__all__ = [
    "SampleMethod",
    "gradients_taker",
    "loss_of_one",
    "one_by_one",
    "one_gradient",
    "one_gradient_and_loss",
    "per_sample_gradients",
    "refusing",
    "single",
    "vmapped_gradients",
    "whole_loss",
]

SampleMethod = Literal["layers", "vmap", "loop"]


@checked
def per_sample_gradients(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    chunk_size: ChunkSize = None,
    memory: int | str | None = None,
    method: SampleMethod = "layers",
) -> Params:
    """Gradient of every sample's loss: g_i = ∇ℓ_i(θ).

    There is no normaliser: their mean over N is the gradient of a mean loss.

    Any loss that ``vmap`` takes will do. Where it multiplies by a matrix of parameters, in
    ``F.linear`` and its like, or calls ``F.conv2d``, that parameter's gradients are taken by
    batched products of the layer's inputs and output gradients; all others are taken by
    ``vmap(grad)``. What vmap cannot take (fused recurrent layers, ``.item()``, boolean masks,
    activation checkpointing) the loop can; a module with such layers wants
    ``functionalize(module, vectorize=False)``.

    Args:
        loss_fn: ``loss_fn(params, batch)``, a mean loss; it is given batches of one sample.
        params: any tree of floating-point tensors.
        batch: any tree of tensors with a leading sample axis.
        chunk_size: samples that are taken at once; None takes all, ``"auto"`` as many as
            ``memory`` has room for.
        memory: bytes for ``chunk_size="auto"`` beyond the result, a number or ``"1GB"``; half of
            what is free by default.
        method: ``"vmap"`` takes all gradients by ``vmap(grad)``: the reference. ``"loop"`` takes
            one ordinary backward pass after another.

    Returns:
        A tree like ``params`` with leaves ``[N, ...]``.

    Raises:
        VectorizationError: a loss that vmap cannot take and the loop can.
        SettingError: a batch whose leaves have different lengths, a loss that is not a scalar or
            in which no parameter has a part, parameters that are not floating-point tensors, a
            chunk size that cannot work.
    """
    take = gradients_taker(loss_fn, params, method)
    with refusing(loss_fn, params, batch, method):
        size = resolve_chunk(take, batch, chunk_size, memory)
        parts = [take(part) for part in chunks(batch, size)]
    return parts[0] if len(parts) == 1 else tree_map(lambda *pieces: torch.cat(pieces), *parts)


def gradients_taker(
    loss_fn: LossFn, params: Params, method: SampleMethod = "layers"
) -> Callable[[Batch], Params]:
    """The function from a batch to its gradients; `per_sample_gradients` without chunks."""
    check_mode("method", method, get_args(SampleMethod))
    check_floating(params, "params")
    values, spec = flatten(params)
    loss = loss_of_one(loss_fn, params)

    def by_layers(batch: Batch) -> Params:
        found = collect(loss, values, batch, wanted=_is_quick_matrix(values), received=_formed)
        return unflatten(found.gradients(), spec)

    def by_vmap(batch: Batch) -> Params:
        return unflatten(vmapped_gradients(loss, values, batch)[0], spec)

    def by_loop(batch: Batch) -> Params:
        rows = [grads for grads, _ in one_by_one(loss_fn, params, batch)]
        return tree_map(lambda *pieces: torch.stack(pieces), *rows)

    return {"layers": by_layers, "vmap": by_vmap, "loop": by_loop}[method]


def vmapped_gradients(
    loss: Callable[[list[Tensor], Batch], Tensor], values: list[Tensor], batch: Batch
) -> tuple[list[Tensor], Tensor]:
    """Gradients ``[N, ...]`` of a loss like that of `loss_of_one`, and losses ``[N]``."""
    keep = is_differentiated([*values, *flatten(batch)[0]])
    gradient = torch.func.grad_and_value(checked_to_reach(loss))
    with DecomposedOperations(-1 if keep else None):
        found: tuple[list[Tensor], Tensor] = torch.func.vmap(gradient, in_dims=(None, 0))(
            values, batch
        )
    return found


def one_gradient(loss_fn: LossFn, params: Params, batch: Batch) -> Params:
    """The gradient of a batch, such as one of a single sample, by an ordinary backward pass."""
    return one_gradient_and_loss(loss_fn, params, batch)[0]


@outside_inference_mode
def one_gradient_and_loss(loss_fn: LossFn, params: Params, batch: Batch) -> tuple[Params, Tensor]:
    """The same, and the loss, detached."""
    values, spec = flatten(params)
    keep = is_differentiated([*values, *flatten(batch)[0]])

    def loss(values: list[Tensor]) -> Tensor:
        with KeptClassWeights():
            return check_scalar(loss_fn(unflatten(values, spec), batch), "loss_fn")

    calculus = Eager() if no_transform_active() else Functional()
    with DecomposedOperations(-1) if keep else nullcontext():
        grads, value = calculus.gradient(loss, values, differentiable=keep)
    return unflatten(grads, spec), value


def one_by_one(loss_fn: LossFn, params: Params, batch: Batch) -> Iterator[tuple[Params, Tensor]]:
    """`one_gradient_and_loss` of each sample, zero gradients where its loss uses no parameter."""
    check_floating(params, "params")
    unreached: UnreachedError | None = None
    for number, sample in enumerate(chunks(batch, 1)):
        try:
            found = one_gradient_and_loss(loss_fn, params, sample)
        except UnreachedError as error:
            if number == 0:
                unreached = error
            with torch.no_grad():
                loss = check_scalar(loss_fn(params, sample), "loss_fn")
            found = tree_map(torch.zeros_like, params), loss
        else:
            unreached = None
        yield found
    if unreached is not None:
        raise unreached


def refusing(
    loss_fn: LossFn, params: Params, batch: Batch, method: SampleMethod
) -> AbstractContextManager[None]:
    """A block whose errors name ``method="loop"`` where that takes the loss."""
    check_mode("method", method, get_args(SampleMethod))
    if method == "loop":
        return nullcontext()

    def loop() -> None:
        for _ in one_by_one(loss_fn, params, batch):
            pass

    return vectorizing("method", method, loop)


def loss_of_one(loss_fn: LossFn, params: Params) -> Callable[[list[Tensor], Batch], Tensor]:
    """The loss of leaves like those of ``params`` and of one sample without a sample axis."""
    _, spec = flatten(params)

    def loss(values: list[Tensor], sample: Batch) -> Tensor:
        with KeptClassWeights():
            return check_scalar(loss_fn(unflatten(values, spec), single(sample)), "loss_fn")

    return loss


def whole_loss(loss_fn: LossFn, params: Params) -> Callable[[list[Tensor], Batch], Tensor]:
    """The loss of leaves like those of ``params`` and of a batch, unchecked."""
    _, spec = flatten(params)
    return lambda values, batch: loss_fn(unflatten(values, spec), batch)


def _is_quick_matrix(values: list[Tensor]) -> Callable[[int, LayerCall], bool]:
    """Whether a call forms the gradients of a matrix quicker than ``vmap(grad)``."""
    return lambda index, call: call.quick and values[index].dim() > 1


def _formed(index: int, gradients: SampleGradients) -> SampleGradients:
    return FormedGradients(gradients.formed())


def single(sample: Batch) -> Any:
    """One sample as a batch of one."""
    return tree_map(lambda x: x.unsqueeze(0), sample)
