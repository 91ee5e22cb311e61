"""The gradient of the query loss after adaptation with respect to the initial parameters.

Written for one task and batched over tasks in one place. The gradient is taken *inside* the task
axis, ``vmap(grad(task))``: taken outside it, torch's second order through batch, layer and instance
normalisation is silently wrong (pytorch/functorch#534).
Axes: T tasks, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from metalearn.core.adapt import (
    Adapted,
    adapt,
    check_inner,
    eager_grad_and_value,
    inner_trajectory,
    last_of,
)
from metalearn.core.inner import InnerOptimizer
from metalearn.core.tree import add_scaled, flatten, leaves, match_names, scale, tree_map, unflatten
from metalearn.errors import SettingError, check_whole
from metalearn.types import Batch, LossFn, Params, TaskBatch

__all__ = ["MetaGradient", "Method", "map_tasks", "meta_gradient"]

Method = Literal["auto", "reverse", "first_order"]

TaskResult = tuple[Params, Tensor, Tensor]
"""Gradients, query loss, support losses ``[K]`` of one task (or, batched, of T)."""


class MetaGradient(NamedTuple):
    """What `meta_gradient` gives."""

    grads: Params
    """Mean over tasks of the gradient of the query loss, a tree like the parameters."""
    loss: Tensor
    """Mean query loss, a scalar."""
    query_losses: Tensor
    """``[T]``: query loss of each task after adaptation."""
    support_losses: Tensor
    """``[T, K]``: support loss of each task before each inner step."""


def meta_gradient(
    loss_fn: LossFn,
    params: Params,
    tasks: TaskBatch,
    *,
    optimizer: InnerOptimizer,
    steps: int,
    method: Method = "auto",
    chunk_size: int | None = None,
    vectorize: bool = True,
    frozen: str | Sequence[str] | None = None,
) -> MetaGradient:
    """Mean over tasks of d L(θ_K(θ), query) / dθ, where θ_K comes from K inner steps.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch, a scalar.
        params: any pytree of floating-point tensors; those that the loss does not use have a
            gradient of zero.
        tasks: ``TaskBatch(support, query)``, every leaf ``[T, ...]``.
        optimizer: the inner optimiser, for example ``sgd(0.1)``.
        steps: K, at least 0; K = 0 gives the ordinary gradient of the query loss.
        method: ``"reverse"`` differentiates through the unrolled loop (exact; memory grows with
            K). ``"first_order"`` takes the gradient at θ_K as if it were the gradient at θ
            (FOMAML). ``"auto"`` is ``"reverse"``.
        chunk_size: tasks at a time; None takes all T at once. The result is the same.
        vectorize: False runs the tasks in a plain loop with ordinary autograd, for models that
            vmap cannot take.
        frozen: shell-style pattern, or several, over parameter names that the inner loop leaves
            alone; the meta-gradient still has entries for them. Where all of them match, the
            result is the ordinary gradient of the query loss.

    Returns:
        ``MetaGradient(grads, loss, query_losses [T], support_losses [T, K])``, detached.

    Raises:
        SettingError: an unknown method, values out of range, task leaves whose leading axes differ.

    Source: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning", ICML 2017.
    """
    check_inner(params, steps)
    if method not in get_args(Method):
        raise SettingError("method", method, f"one of {', '.join(get_args(Method))} is needed")
    match_names(params, frozen, "frozen")
    count = _task_count(tasks)
    _check_chunk(chunk_size)
    inner = {"optimizer": optimizer, "steps": steps, "frozen": frozen}
    params = tree_map(Tensor.detach, params)
    if not vectorize:
        one = _first_order_loop if method == "first_order" else _reverse_loop
    else:
        one = _first_order if method == "first_order" else _reverse
    size = 1 if not vectorize else chunk_size or count
    total: Params = None
    query, support = [], []
    for start in range(0, count, size):
        chunk = tree_map(lambda x, s=start: x[s : s + size], tasks)
        grads, query_losses, support_losses = _batched(
            one, loss_fn, params, chunk, inner, vectorize
        )
        total = grads if total is None else add_scaled(total, grads, 1.0)
        query.append(query_losses.detach())
        support.append(support_losses.detach())
    query_losses = torch.cat(query)
    total = tree_map(Tensor.detach, total)
    return MetaGradient(
        scale(total, 1 / count), query_losses.mean(), query_losses, torch.cat(support)
    )


def map_tasks(
    function: Callable[..., Any],
    params: Params,
    tasks: TaskBatch,
    *,
    chunk_size: int | None = None,
    vectorize: bool = True,
) -> Any:
    """``function(params, support, query)`` over tasks, results stacked on a leading axis ``[T]``.

    By ``vmap``, ``chunk_size`` tasks at a time, or in a plain loop where ``vectorize`` is False.
    """
    _task_count(tasks)
    _check_chunk(chunk_size)
    if vectorize:
        batched = vmap(function, in_dims=(None, 0, 0), chunk_size=chunk_size)
        return batched(params, tasks.support, tasks.query)
    results = [function(params, *task) for task in _unbind(tasks)]
    return tree_map(lambda *xs: torch.stack(xs), results[0], *results[1:])


def _batched(
    one: Callable[..., TaskResult],
    loss_fn: LossFn,
    params: Params,
    tasks: TaskBatch,
    inner: dict[str, Any],
    vectorize: bool,
) -> TaskResult:
    """Gradients summed over the tasks of a chunk, query losses ``[T]``, support losses."""
    grads, query, support = map_tasks(
        lambda p, s, q: one(loss_fn, p, s, q, inner), params, tasks, vectorize=vectorize
    )
    return tree_map(lambda g: g.sum(0), grads), query, support


def _reverse(
    loss_fn: LossFn, params: Params, support: Batch, query: Batch, inner: dict[str, Any]
) -> TaskResult:
    def task(start: Params) -> tuple[Tensor, Tensor]:
        adapted = adapt(loss_fn, start, support, **inner)
        return loss_fn(adapted.params, query), adapted.losses

    grads, (loss, losses) = grad_and_value(task, has_aux=True)(params)
    return grads, loss, losses


def _first_order(
    loss_fn: LossFn, params: Params, support: Batch, query: Batch, inner: dict[str, Any]
) -> TaskResult:
    adapted = adapt(loss_fn, params, support, **inner)
    grads, loss = grad_and_value(loss_fn)(adapted.params, query)
    return grads, loss, adapted.losses


def _reverse_loop(
    loss_fn: LossFn, params: Params, support: Batch, query: Batch, inner: dict[str, Any]
) -> TaskResult:
    """One task with ordinary autograd, for what torch.func cannot transform."""
    values, spec = flatten(params)
    support_losses = torch.zeros(0)

    def task(start: Sequence[Tensor]) -> Tensor:
        nonlocal support_losses
        adapted, support_losses = _walk(
            loss_fn, unflatten(start, spec), support, inner, create_graph=True
        )
        return loss_fn(adapted, query)

    grads, loss = eager_grad_and_value(create_graph=False)(task, values)
    return unflatten(grads, spec), loss, support_losses


def _first_order_loop(
    loss_fn: LossFn, params: Params, support: Batch, query: Batch, inner: dict[str, Any]
) -> TaskResult:
    adapted, support_losses = _walk(loss_fn, params, support, inner, create_graph=False)
    values, spec = flatten(adapted)
    grads, loss = eager_grad_and_value(create_graph=False)(
        lambda end: loss_fn(unflatten(end, spec), query), values
    )
    return unflatten(grads, spec), loss, support_losses


def _walk(
    loss_fn: LossFn, params: Params, support: Batch, inner: dict[str, Any], *, create_graph: bool
) -> Adapted:
    """θ_K and the support losses by ordinary autograd."""
    eager = eager_grad_and_value(create_graph=create_graph)
    return last_of(inner_trajectory(loss_fn, params, support, grad_and_value=eager, **inner))


def _check_chunk(chunk_size: int | None) -> None:
    if chunk_size is not None:
        check_whole("chunk_size", chunk_size, 1)


def _unbind(tasks: TaskBatch) -> list[TaskBatch]:
    return [tree_map(lambda x, t=t: x[t], tasks) for t in range(_task_count(tasks))]


def _task_count(tasks: TaskBatch) -> int:
    """T, which all leaves of support and query must share."""
    sizes = {int(leaf.shape[0]) if leaf.ndim else 0 for leaf in leaves(tasks)}
    if len(sizes) != 1 or 0 in sizes:
        raise SettingError(
            "tasks",
            sorted(sizes),
            "every leaf of support and query needs the same leading task axis of at least 1",
        )
    return sizes.pop()
