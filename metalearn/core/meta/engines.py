"""Three ways to run a method over a batch of tasks; all give the same gradient.

``batched`` runs T tasks at once on leaves ``[T, ...]`` by ordinary autograd: vmap carries the loss
forward, task-batched operations stand in for convolutions and normalisation, and no derivative is
taken through vmap's own rules. ``vmap`` runs one task under ``torch.func`` inside vmap, gradients
taken inside the task axis: taken outside it, torch's second order through batch, layer and instance
normalisation is silently wrong (pytorch/functorch#534). ``loop`` runs one task after another by
ordinary autograd, for models that vmap cannot take.
Axes: T tasks, K inner steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from metalearn.core._functorch import transforms_active
from metalearn.core.autodiff.backend import Calculus, Eager, Functional, Values
from metalearn.core.checks import scalar_loss
from metalearn.core.meta.adapt import InnerLoop, inner_loop, trajectory
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.meta.methods import METHODS, Given, Implicit, TaskGradient
from metalearn.core.ops import plain_operations_inside, remembering, task_operations
from metalearn.core.tree import flatten, leaves, tree_map, unflatten
from metalearn.errors import SettingError
from metalearn.types import Batch, LossFn, Params, TaskBatch

__all__ = [
    "GRADIENTS",
    "VISITS",
    "Engine",
    "Inner",
    "TaskSums",
    "gradient_of_pairs",
    "gradient_of_tasks",
    "structural_engine",
]

_NO_DERIVATIVE = r"derivative for '?(?:aten::)?(\w+)'? is not implemented"
Engine = Literal["auto", "batched", "vmap", "loop"]
Visit = Callable[[Params, Batch, Batch], Any]


class Inner(NamedTuple):
    """How every task adapts."""

    loss_fn: LossFn
    """Of one task, checked to be a scalar."""
    optimizer: InnerOptimizer
    steps: int
    frozen: str | Sequence[str] | None

    @staticmethod
    def of(
        loss_fn: LossFn,
        optimizer: InnerOptimizer,
        steps: int,
        frozen: str | Sequence[str] | None,
    ) -> Inner:
        """The same, with the check of the loss put in."""
        return Inner(scalar_loss(loss_fn), optimizer, steps, frozen)


class TaskSums(NamedTuple):
    """What an engine gives for a chunk of tasks."""

    grads: Params
    """Summed over tasks."""
    learnt: Any
    """Summed over tasks; a tree like ``optimizer.learnt``."""
    query_losses: Tensor
    """``[T]``."""
    support_losses: Tensor
    """``[T, K]``."""
    diagnostics: dict[str, Tensor]
    """Each ``[T]``."""


def structural_engine(optimizer: InnerOptimizer) -> tuple[Engine, str]:
    """The engine that fits what can be seen without running anything, and why not a faster one."""
    if transforms_active():
        return "vmap", "batched works outside transforms of torch.func alone"
    if not optimizer.elementwise:
        return "vmap", "batched needs an inner optimiser that is marked elementwise"
    return "batched", ""


def _gradient_batched(
    method: str, implicit: Implicit, inner: Inner, params: Params, tasks: TaskBatch
) -> TaskSums:
    """All tasks at once, leaves ``[T, ...]``."""
    result, spec = gradient_of_tasks(method, implicit, inner, params, tasks)
    grads = unflatten([_sum_tasks(g) for g in result.grads], spec)
    losses = [x.detach() for x in result.support_losses]
    support = torch.stack(losses, 1) if losses else result.query_loss.new_zeros(_count(tasks), 0)
    return TaskSums(grads, _learnt(inner, result), result.query_loss, support, result.diagnostics)


def gradient_of_tasks(
    method: str, implicit: Implicit, inner: Inner, params: Params, tasks: TaskBatch
) -> tuple[TaskGradient, Any]:
    """All tasks at once, not summed, leaves ``[T, ...]``; and the shape of the tree."""
    stacked, spec = flatten(_stacked(params, tasks))
    with remembering():
        run = _run(method, implicit, _over_tasks(inner), params, stacked, tasks, Eager())
    return run, spec


def gradient_of_pairs(
    method: str, implicit: Implicit, inner: Inner, params: Params, tasks: TaskBatch
) -> TaskSums:
    """All M·T pairs of member and task at once; params ``[M, ...]``, tasks ``[T, ...]``.

    Grads are ``[M, ...]``, summed over tasks; losses and diagnostics ``[M, T, ...]``.
    """
    count, members = _count(tasks), int(leaves(params)[0].shape[0])
    stacked, spec = flatten(tree_map(lambda v: _for_every_task(v, count), params))
    pairs = tree_map(lambda x: x.expand(members, *x.shape).flatten(0, 1), tasks)
    with remembering():
        result = _run(method, implicit, _over_tasks(inner), params, stacked, pairs, Eager())
    apart = [g.reshape(members, count, *g.shape[1:]) for g in result.grads]
    losses = [x.detach() for x in result.support_losses]
    query = result.query_loss
    support = torch.stack(losses, 1) if losses else query.new_zeros(members * count, 0)
    return TaskSums(
        unflatten([g.sum(1) for g in apart], spec),
        (),
        query.view(members, count),
        support.view(members, count, -1),
        {name: value.view(members, count) for name, value in result.diagnostics.items()},
    )


def _gradient_vmapped(
    method: str, implicit: Implicit, inner: Inner, params: Params, tasks: TaskBatch
) -> TaskSums:
    """One task under torch.func, inside vmap."""

    def one(values: Values, support: Batch, query: Batch) -> Any:
        task = TaskBatch(support, query)
        result = _run(method, implicit, inner, params, values, task, Functional())
        return result._replace(support_losses=_stack(result))

    inner = _guarded(inner)
    start, spec = flatten(params)
    result = vmap(one, in_dims=(None, 0, 0))(start, tasks.support, tasks.query)
    grads = unflatten([g.sum(0) for g in result.grads], spec)
    learnt = _learnt(inner, result._replace(learnt=[g.sum(0) for g in result.learnt]))
    return TaskSums(grads, learnt, result.query_loss, result.support_losses, result.diagnostics)


def _gradient_looped(
    method: str, implicit: Implicit, inner: Inner, params: Params, tasks: TaskBatch
) -> TaskSums:
    """One task after another."""
    inner = _guarded(inner)
    start, spec = flatten(params)
    totals: list[Tensor] = []
    query, support, diagnostics = [], [], []
    for task in _one_by_one(tasks):
        result = _run(method, implicit, inner, params, start, task, Eager())
        found = [*result.grads, *result.learnt]
        totals = [a + b for a, b in zip(totals, found)] if totals else found
        query.append(result.query_loss)
        support.append(_stack(result).detach())
        diagnostics.append(result.diagnostics)
    result = result._replace(learnt=totals[len(start) :])
    return TaskSums(
        unflatten(totals[: len(start)], spec),
        _learnt(inner, result),
        torch.stack(query),
        torch.stack(support),
        {name: torch.stack([d[name] for d in diagnostics]) for name in result.diagnostics},
    )


def _visit_batched(visit: Visit, inner: Inner, params: Params, tasks: TaskBatch) -> Any:
    points = _trajectory(_over_tasks(inner), _stacked(params, tasks), tasks.support)
    found = [_mapped(visit)(params, *tasks) for params in points]
    return tree_map(lambda *xs: torch.stack(xs, 1), found[0], *found[1:])


def _visit_vmapped(visit: Visit, inner: Inner, params: Params, tasks: TaskBatch) -> Any:
    def one(params: Params, support: Batch, query: Batch) -> Any:
        points = _trajectory(inner, params, support, Functional())
        found = [visit(params, support, query) for params in points]
        return tree_map(lambda *xs: torch.stack(xs), found[0], *found[1:])

    return vmap(one, in_dims=(None, 0, 0))(params, *tasks)


def _visit_looped(visit: Visit, inner: Inner, params: Params, tasks: TaskBatch) -> Any:
    rows = []
    for task in _one_by_one(tasks):
        found = [visit(point, *task) for point in _trajectory(inner, params, task.support)]
        rows.append(tree_map(lambda *xs: torch.stack(xs), found[0], *found[1:]))
    return tree_map(lambda *xs: torch.stack(xs), rows[0], *rows[1:])


GRADIENTS: dict[str, Callable[[str, Implicit, Inner, Params, TaskBatch], TaskSums]] = {
    "batched": _gradient_batched,
    "vmap": _gradient_vmapped,
    "loop": _gradient_looped,
}
VISITS: dict[str, Callable[[Visit, Inner, Params, TaskBatch], Any]] = {
    "batched": _visit_batched,
    "vmap": _visit_vmapped,
    "loop": _visit_looped,
}


def _run(
    method: str,
    implicit: Implicit,
    inner: Inner,
    params: Params,
    start: Values,
    tasks: TaskBatch,
    calculus: Calculus,
) -> TaskGradient:
    def loop_of(optimizer: InnerOptimizer) -> InnerLoop:
        return inner_loop(
            inner.loss_fn, params, optimizer=optimizer, frozen=inner.frozen, calculus=calculus
        )

    given = Given(loop_of, inner.optimizer, start, *tasks, inner.steps, settings=implicit)
    try:
        return METHODS[method](given)
    except RuntimeError as error:  # NotImplementedError is one
        missing = re.search(_NO_DERIVATIVE, str(error))
        if missing is None:
            raise
        raise SettingError(
            "method",
            method,
            f"torch has no derivative of {missing[1]}, which second derivatives of this loss need; "
            "method='first_order' (maml.first_order=true) takes none",
        ) from error


def _trajectory(
    inner: Inner, params: Params, support: Batch, calculus: Calculus | None = None
) -> Iterator[Params]:
    """θ_0 … θ_K."""
    for point in trajectory(
        inner.loss_fn,
        params,
        support,
        optimizer=inner.optimizer,
        steps=inner.steps,
        frozen=inner.frozen,
        calculus=calculus or Eager(),
    ):
        yield point.params


def _guarded(inner: Inner) -> Inner:
    """The same with `metalearn.core.ops.plain_operations` in the place of torch's own."""

    def loss(params: Params, batch: Batch) -> Tensor:
        with plain_operations_inside():
            return inner.loss_fn(params, batch)

    return inner._replace(loss_fn=loss)


def _over_tasks(inner: Inner) -> Inner:
    """The same with a loss of trees ``[T, ...]``, which gives ``[T]``."""
    return inner._replace(loss_fn=_mapped(inner.loss_fn))


def _mapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """``vmap`` with task-batched operations in place of torch's layers."""

    def run(*args: Any) -> Any:
        with task_operations(args):
            return vmap(function)(*args)

    return run


def _stacked(params: Params, tasks: TaskBatch) -> Params:
    """The same parameters for every task, ``[T, ...]``, without a copy for each."""
    count = _count(tasks)
    return tree_map(lambda v: _in_reading_order(v).expand(count, *v.shape), params)


def _one_by_one(tasks: TaskBatch) -> Iterator[TaskBatch]:
    for t in range(_count(tasks)):
        yield tree_map(lambda x, t=t: x[t], tasks)


def _count(tasks: TaskBatch) -> int:
    return int(leaves(tasks)[0].shape[0])


def _learnt(inner: Inner, result: TaskGradient) -> Any:
    return unflatten(result.learnt, flatten(inner.optimizer.learnt)[1])


def _stack(result: TaskGradient) -> Tensor:
    losses = result.support_losses
    return torch.stack(losses) if losses else result.query_loss.new_zeros(0)


def _for_every_task(leaf: Tensor, count: int) -> Tensor:
    """``[M, ...]`` as ``[M·T, ...]``, a member's row once for each task."""
    if leaf.dim() == 5:  # see _in_reading_order
        ordered = leaf.permute(0, 3, 4, 2, 1)
        repeated = ordered[:, None].expand(-1, count, *ordered.shape[1:]).flatten(0, 1)
        return repeated.permute(0, 4, 3, 1, 2)
    return leaf[:, None].expand(-1, count, *leaf.shape[1:]).flatten(0, 1)


def _in_reading_order(leaf: Tensor) -> Tensor:
    """The same leaf; if it may be the weight of a convolution, its memory in the order of columns.

    Gradients and updates then come in that order too, and no step has to reorder weights.
    """
    if leaf.dim() != 4:
        return leaf
    return leaf.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)


def _sum_tasks(grad: Tensor) -> Tensor:
    """Sum over the leading axis, in the order of memory, then in that of the leaf."""
    order = sorted(range(1, grad.dim()), key=grad.stride, reverse=True)
    back = [order.index(dim) for dim in range(1, grad.dim())]
    return grad.permute(0, *order).sum(0).permute(back).contiguous()
