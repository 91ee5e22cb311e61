"""Three ways to run over a batch of tasks what is written for one; all give the same gradient.

``batched`` runs T tasks at once on leaves ``[T, ...]`` by ordinary autograd: vmap carries the loss
forward, task-batched operations stand in for convolutions and normalisation, and no derivative is
taken through vmap's own rules. ``vmap`` runs one task under ``torch.func`` inside vmap, gradients
taken inside the task axis: taken outside it, torch's second order through batch, layer and instance
normalisation is silently wrong (pytorch/functorch#534). ``loop`` runs one task after another by
ordinary autograd, for models that vmap cannot take.
Axes: M members, T tasks, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import vmap

from metalearn.core._functorch import transforms_active
from metalearn.core.autodiff.backend import Backend, Eager, Functional, Values
from metalearn.core.ensemble.stacking import take_member
from metalearn.core.meta.adaptation import Lift
from metalearn.core.meta.adapted_task import TaskGradient
from metalearn.core.meta.task_axis import (
    for_every_task,
    one_by_one,
    stacked_over_tasks,
    sum_over_tasks,
    task_count,
)
from metalearn.core.ops import caching_data, decomposed_operations_in_loss, task_operations
from metalearn.core.tree import flatten, leaves, tree_map, unflatten
from metalearn.types import Batch, Params, TaskBatch

__all__ = [
    "ENGINES",
    "Engine",
    "Execution",
    "TaskProgram",
    "TaskSums",
    "gradient_of_pairs",
    "gradient_of_tasks",
    "over_tasks",
    "structural_engine",
]

Engine = Literal["auto", "batched", "vmap", "loop"]
"""``batched`` runs all tasks at once with task-batched layers (fastest), ``vmap`` batches one task
with its ``torch.func`` gradient, ``loop`` runs one task after another, for models that vmap cannot
take. ``auto`` is ``batched``, or ``vmap`` inside another transform of ``torch.func`` and for inner
optimisers that are not elementwise. A loss that asks for ``requires_grad``, hangs hooks on tensors
or calls ``torch.autograd.grad`` needs the loop."""


class Execution(NamedTuple):
    """How an engine runs what is written for one task."""

    backend: Backend
    """How gradients are taken."""
    lift: Lift
    """What becomes of functions that users wrote for one task."""
    lead: int = 0
    """How many axes tasks have in front of every leaf, 0 or 1."""


class TaskProgram(Protocol):
    """What is to be found for each task, such as the gradient of its query loss."""

    @property
    def learnt(self) -> Any:
        """A tree of tensors beside the parameters that have gradients too, such as step sizes."""
        ...

    @property
    def stackable(self) -> bool:
        """Whether `with_learnt` takes a value for each row."""
        ...

    def with_learnt(self, learnt: Any, *, stacked: bool = False) -> TaskProgram:
        """The same with other values of it; ``stacked``, with one for each row of the leaves."""
        ...

    def __call__(
        self, params: Params, values: Values, task: TaskBatch, execution: Execution
    ) -> TaskGradient:
        """For one task, or, as the execution has it, for T at once.

        Args:
            params: a tree whose names and structure the values have.
            values: its leaves, those of T tasks with T in front.
            task: the same of support and query.
            execution: how gradients are taken and functions are called.
        """
        ...


class TaskSums(NamedTuple):
    """What an engine gives for a chunk of tasks."""

    grads: Params
    """Summed over tasks."""
    optimizer_grads: Any
    """Summed over tasks; a tree like ``optimizer.learnt``."""
    query_losses: Tensor
    """``[T]``."""
    support_losses: Tensor
    """``[T, K]``."""
    diagnostics: dict[str, Tensor]
    """Each ``[T, ...]``."""


def structural_engine(elementwise: bool) -> tuple[Engine, str]:
    """The engine that fits what can be seen without running anything, and why not a faster one."""
    if transforms_active():
        return "vmap", "batched works outside transforms of torch.func alone"
    if not elementwise:
        return "vmap", "batched needs an inner optimiser that is marked elementwise"
    return "batched", ""


def gradient_of_tasks(
    program: TaskProgram, params: Params, tasks: TaskBatch
) -> tuple[TaskGradient, Any]:
    """All tasks at once, not summed, leaves ``[T, ...]``; and the shape of the tree."""
    stacked, spec = flatten(stacked_over_tasks(params, tasks))
    with caching_data():
        found = program(params, stacked, tasks, _BATCHED)
    return found, spec


def gradient_of_pairs(
    program: TaskProgram, params: Params, tasks: TaskBatch, learnt: Any = ()
) -> TaskSums:
    """All M·T pairs of member and task at once; params ``[M, ...]``, tasks ``[T, ...]``.

    Grads are ``[M, ...]``, summed over tasks; losses and diagnostics ``[M, T, ...]``. What is
    ``learnt`` has M in front, as its gradients have.
    """
    count, members = task_count(tasks), int(leaves(params)[0].shape[0])
    stacked, spec = flatten(tree_map(lambda v: for_every_task(v, count), params))
    pairs = tree_map(lambda x: x.expand(members, *x.shape).flatten(0, 1), tasks)
    if leaves(learnt):
        rows = tree_map(lambda v: for_every_task(v, count), learnt)
        program = program.with_learnt(rows, stacked=True)
    with caching_data():
        found = program(take_member(params, 0), stacked, pairs, _BATCHED)

    def apart(value: Tensor) -> Tensor:
        return value.reshape(members, count, *value.shape[1:])

    return TaskSums(
        unflatten([apart(g).sum(1) for g in found.grads], spec),
        tree_map(lambda g: apart(g).sum(1), found.optimizer_grads),
        apart(found.query_loss),
        apart(_support_losses(found, members * count)),
        {name: apart(value) for name, value in found.diagnostics.items()},
    )


def over_tasks(function: Callable[..., Any]) -> Callable[..., Any]:
    """``vmap`` with task-batched operations in place of torch's layers."""

    def run(*args: Any) -> Any:
        with task_operations(args):
            return vmap(function)(*args)

    return run


def _gradient_batched(program: TaskProgram, params: Params, tasks: TaskBatch) -> TaskSums:
    """All tasks at once, leaves ``[T, ...]``."""
    found, spec = gradient_of_tasks(program, params, tasks)
    return TaskSums(
        unflatten([sum_over_tasks(g) for g in found.grads], spec),
        found.optimizer_grads,
        found.query_loss,
        _support_losses(found, task_count(tasks)),
        found.diagnostics,
    )


def _gradient_vmapped(program: TaskProgram, params: Params, tasks: TaskBatch) -> TaskSums:
    """One task under torch.func, inside vmap."""
    start, spec = flatten(params)

    def one(values: Values, support: Batch, query: Batch) -> Any:
        found = program(params, values, TaskBatch(support, query), _VMAPPED)
        return found._replace(support_losses=_stacked(found))

    found = vmap(one, in_dims=(None, 0, 0))(start, tasks.support, tasks.query)
    grads, optimizer_grads = tree_map(lambda g: g.sum(0), (found.grads, found.optimizer_grads))
    return TaskSums(unflatten(grads, spec), optimizer_grads, *found[2:])


def _gradient_looped(program: TaskProgram, params: Params, tasks: TaskBatch) -> TaskSums:
    """One task after another."""
    start, spec = flatten(params)
    totals: Any = None
    query, support, diagnostics = [], [], []
    for task in one_by_one(tasks):
        found = program(params, start, task, _LOOPED)
        both = [found.grads, found.optimizer_grads]
        totals = both if totals is None else tree_map(torch.add, totals, both)
        query.append(found.query_loss)
        support.append(_stacked(found).detach())
        diagnostics.append(found.diagnostics)
    return TaskSums(
        unflatten(totals[0], spec),
        totals[1],
        torch.stack(query),
        torch.stack(support),
        tree_map(lambda *rows: torch.stack(rows), diagnostics[0], *diagnostics[1:]),
    )


ENGINES: dict[str, Callable[[TaskProgram, Params, TaskBatch], TaskSums]] = {
    "batched": _gradient_batched,
    "vmap": _gradient_vmapped,
    "loop": _gradient_looped,
}


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same with `metalearn.core.ops.decomposed_operations` in the place of torch's own."""

    def run(*args: Any) -> Any:
        with decomposed_operations_in_loss():
            return function(*args)

    return run


_BATCHED = Execution(Eager(), over_tasks, lead=1)
_VMAPPED = Execution(Functional(), _guarded)
_LOOPED = Execution(Eager(), _guarded)


def _support_losses(found: TaskGradient, rows: int) -> Tensor:
    """``[T, K]`` of K losses ``[T]``."""
    losses = [x.detach() for x in found.support_losses]
    return torch.stack(losses, 1) if losses else found.query_loss.new_zeros(rows, 0)


def _stacked(found: TaskGradient) -> Tensor:
    """``[K]`` of K losses of one task."""
    losses = found.support_losses
    return torch.stack(losses) if losses else found.query_loss.new_zeros(0)
