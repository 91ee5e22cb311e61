"""The gradient of the query loss after adaptation with respect to the initial parameters.

How it is found is a *method* (`metalearn.core.meta.methods`), how tasks are batched is an *engine*
(`metalearn.core.meta.engines`); any method runs on any engine.
Axes: T tasks, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from metalearn.core.checks import call, check_number, check_samples, outside_inference_mode
from metalearn.core.memory import keep_freed_memory
from metalearn.core.meta.adapt import check_inner
from metalearn.core.meta.engines import (
    GRADIENTS,
    VISITS,
    Engine,
    Inner,
    TaskSums,
    structural_engine,
)
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.meta.methods import Implicit
from metalearn.core.tree import add_scaled, check_tensors, leaves, match_names, scale, tree_map
from metalearn.core.vectorization import vectorizing
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params, TaskBatch

__all__ = ["MetaGradient", "Method", "along_adaptation", "meta_gradient"]

Method = Literal["auto", "reverse", "mixed", "first_order", "implicit"]


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
    optimizer_grads: Any
    """Mean over tasks of the gradient of what the inner optimiser learns, a tree like
    ``optimizer.learnt``."""
    diagnostics: dict[str, Tensor]
    """``[T]`` each: how well the implicit method converged (``cg_residual``, ``stationarity``)."""


@outside_inference_mode
@checked
def meta_gradient(
    loss_fn: LossFn,
    params: Params,
    tasks: TaskBatch,
    *,
    optimizer: InnerOptimizer,
    steps: int,
    method: Method = "auto",
    engine: Engine = "auto",
    chunk_size: int | None = None,
    frozen: str | Sequence[str] | None = None,
    implicit: Implicit | None = None,
) -> MetaGradient:
    """Mean over tasks of d L(θ_K(θ), query) / dθ, where θ_K comes from K inner steps.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch, a scalar.
        params: any pytree of floating-point tensors; those that the loss does not use have a
            gradient of zero, but it must use one.
        tasks: ``TaskBatch(support, query)``, every leaf ``[T, ...]``.
        optimizer: the inner optimiser, for example ``sgd(0.1)``. What it learns (step sizes given
            as tensors) has gradients in ``optimizer_grads``.
        steps: K, at least 0; K = 0 gives the ordinary gradient of the query loss.
        method: ``"reverse"`` differentiates through the unrolled loop (exact; memory grows with
            K). ``"mixed"`` keeps θ_0 … θ_K and recomputes one step at a time on the way back
            (exact; memory grows with the parameters alone, for about a third more time).
            ``"first_order"`` takes the gradient at θ_K as if it were the gradient at θ (FOMAML).
            ``"implicit"`` differentiates the minimum of a regularised inner loss (iMAML).
            ``"auto"`` is ``"reverse"``; `metalearn.core.meta.plan` chooses by memory.
        engine: ``"batched"`` runs all tasks at once with task-batched layers (fastest),
            ``"vmap"`` batches one task's ``torch.func`` gradient, ``"loop"`` runs one task after
            another, for models that vmap cannot take. ``"auto"`` is ``"batched"``, or ``"vmap"``
            inside another transform of ``torch.func`` and for inner optimisers that are not
            elementwise. All give the same gradient; a loss that asks for ``requires_grad``, hangs
            hooks on tensors or calls ``torch.autograd.grad`` needs the loop.
        chunk_size: tasks at a time; None takes all T at once. The result is the same.
        frozen: shell-style pattern, or several, over parameter names that the inner loop leaves
            alone; the meta-gradient still has entries for them. Where all of them match, the
            result is the ordinary gradient of the query loss.
        implicit: settings of that method; `Implicit()` by default.

    Returns:
        ``MetaGradient``, detached.

    Raises:
        SettingError: an unknown method or engine, values out of range, task leaves whose leading
            axes differ, sets without samples; a loss that is not a scalar or in which no parameter
            has a part.
        VectorizationError: a loss that vmap cannot take and ``engine="loop"`` can.

    Source: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning", ICML 2017.
    """
    inner = Inner.of(loss_fn, optimizer, steps, frozen)
    chosen, settings = check_meta(inner, params, method, implicit)
    engine = choose_engine(engine, optimizer)
    check_sets(tasks, steps)

    def run(engine: Engine) -> MetaGradient:
        gradient = partial(GRADIENTS[engine], chosen, settings, inner)
        return mean_over_tasks(gradient, params, tasks, chunk_size)

    with vectorizing("engine", engine, partial(run, "loop")):
        return run(engine)


def check_meta(
    inner: Inner, params: Params, method: Method, implicit: Implicit | None
) -> tuple[str, Implicit]:
    """The method and its settings, after everything that does not depend on tasks is checked."""
    check_inner(params, inner.steps)
    if method not in get_args(Method):
        raise SettingError("method", method, f"one of {', '.join(get_args(Method))} is needed")
    fixed = match_names(params, inner.frozen, "frozen")
    implicit = implicit or Implicit()
    if method == "implicit":
        _check_implicit(implicit, fixed, inner.optimizer)
    return "reverse" if method == "auto" else method, implicit


def mean_over_tasks(
    run: Callable[[Params, TaskBatch], TaskSums],
    params: Params,
    tasks: TaskBatch,
    chunk_size: int | None,
    *,
    axis: int = 0,
) -> MetaGradient:
    """What an engine gives for all tasks, some at a time; losses have tasks along ``axis``."""
    count = _task_count(tasks)
    check_chunk(chunk_size)
    params = _ready(params)
    size = chunk_size or count
    parts = [
        run(params, tree_map(lambda x, s=start: x[s : s + size], tasks))
        for start in range(0, count, size)
    ]
    return _mean(parts, count, axis)


@outside_inference_mode
@checked
def along_adaptation(
    visit: Callable[[Params, Batch, Batch], Any],
    loss_fn: LossFn,
    params: Params,
    tasks: TaskBatch,
    *,
    optimizer: InnerOptimizer,
    steps: int,
    engine: Engine = "auto",
    chunk_size: int | None = None,
    frozen: str | Sequence[str] | None = None,
) -> Any:
    """``visit(θ_k, support, query)`` at θ_0 … θ_K of every task; leaves ``[T, K+1, ...]``.

    ``visit`` is written for one task. Nothing is differentiable. The other arguments and errors
    are those of `meta_gradient`.
    """
    check_inner(params, steps)
    count = check_sets(tasks, steps)
    check_chunk(chunk_size)
    engine = choose_engine(engine, optimizer)
    size, params = chunk_size or count, _ready(params)
    inner = Inner.of(loss_fn, optimizer, steps, frozen)

    def visited(*point: Any) -> Any:
        found = call(visit, "visit", *point)
        check_tensors(found, "visit")
        return found

    def run(engine: Engine) -> Any:
        parts = [
            VISITS[engine](
                visited, inner, params, tree_map(lambda x, s=start: x[s : s + size], tasks)
            )
            for start in range(0, count, size)
        ]
        return tree_map(lambda *xs: torch.cat(xs).detach(), parts[0], *parts[1:])

    with vectorizing("engine", engine, partial(run, "loop")):
        return run(engine)


def check_sets(tasks: TaskBatch, steps: int) -> int:
    """T; refuses sets without samples, where ``steps`` looks at them."""
    count = _task_count(tasks)
    check_samples(tasks.query, "query")
    if steps:
        check_samples(tasks.support, "support")
    return count


def choose_engine(engine: Engine, optimizer: InnerOptimizer) -> Engine:
    """The engine to use: what is asked for, or the fastest that can be.

    Raises:
        SettingError: an unknown one, or ``batched`` where it cannot be.
    """
    check_engine(engine)
    found, reason = structural_engine(optimizer)
    if engine == "batched" != found:
        raise SettingError("engine", engine, f"{reason}; auto, vmap or loop is needed here")
    return found if engine == "auto" else engine


def check_engine(engine: Engine) -> None:
    """Refuse an unknown engine."""
    if engine not in get_args(Engine):
        raise SettingError("engine", engine, f"one of {', '.join(get_args(Engine))} is needed")


def check_chunk(chunk_size: int | None) -> None:
    """Refuse what is no number of tasks at a time."""
    if chunk_size is not None:
        check_whole("chunk_size", chunk_size, 1)


def _mean(parts: Sequence[TaskSums], count: int, axis: int) -> MetaGradient:
    """Chunks put together."""
    grads, learnt = parts[0].grads, parts[0].learnt
    for part in parts[1:]:
        grads, learnt = add_scaled(grads, part.grads, 1.0), add_scaled(learnt, part.learnt, 1.0)

    def joined(values: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(values), axis).detach()

    query = joined([part.query_losses for part in parts])
    result = MetaGradient(
        scale(grads, 1 / count),
        query.mean(axis),
        query,
        joined([part.support_losses for part in parts]),
        scale(learnt, 1 / count),
        {name: joined([p.diagnostics[name] for p in parts]) for name in parts[0].diagnostics},
    )
    detached: MetaGradient = tree_map(Tensor.detach, result)
    return detached


def _check_implicit(implicit: Implicit, fixed: Sequence[bool], optimizer: InnerOptimizer) -> None:
    if optimizer.weight_decay:
        raise SettingError(
            "weight_decay", optimizer.weight_decay, "method=implicit needs 0: it has a term itself"
        )
    check_number("regularization", implicit.regularization, above=0)
    check_whole("iterations", implicit.iterations, 1)
    if all(fixed):
        raise SettingError("frozen", "every parameter", "method=implicit needs one that adapts")


def _ready(params: Params) -> Params:
    """Parameters without a graph, and memory that is reused."""
    if any(leaf.device.type == "cpu" for leaf in leaves(params)):
        keep_freed_memory()
    return tree_map(Tensor.detach, params)


def _task_count(tasks: TaskBatch) -> int:
    """T, which all leaves of support and query must share."""
    for name, part in (("support", tasks.support), ("query", tasks.query)):
        check_tensors(part, name)
    sizes = {int(leaf.shape[0]) if leaf.ndim else 0 for leaf in leaves(tasks)}
    if len(sizes) != 1 or 0 in sizes:
        raise SettingError(
            "tasks",
            sorted(sizes),
            "every leaf of support and query needs the same leading task axis of at least 1",
        )
    return sizes.pop()
