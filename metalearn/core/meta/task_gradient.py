"""The gradient of a loss of whole tasks: of learners without an inner loop, or with their own.

Such a loss is written for one task; the engines of `metalearn.core.meta.engines` batch it.
Axes: T tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metalearn.core.autodiff.backend import Values
from metalearn.core.checks import call_given
from metalearn.core.loss_checks import UnreachedError, check_scalar, outside_inference_mode
from metalearn.core.meta.adapted_task import TaskGradient
from metalearn.core.meta.engines import Engine, Execution
from metalearn.core.meta.task_checks import check_sets, choose_engine
from metalearn.core.meta.task_mean import MetaGradient, mean_gradient
from metalearn.core.tree import check_floating, check_tensors, flatten, unflatten
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.types import Batch, Params, TaskBatch

__all__ = ["TaskLossGradient", "task_gradient"]


@outside_inference_mode
@checked
def task_gradient(
    task_loss: Callable[[Params, Batch, Batch], Any],
    params: Params,
    tasks: TaskBatch,
    *,
    engine: Engine = "auto",
    chunk_size: int | None = None,
    has_aux: bool = False,
) -> MetaGradient:
    """Mean over tasks of d ℓ(θ, support, query) / dθ, for any loss ℓ of a task.

    For learners that predict from features of the support set, and for those that adapt in a way
    of their own: an inner loop by ``torch.func.grad`` inside ℓ is differentiated exactly.

    Args:
        task_loss: ``task_loss(params, support, query)`` of one task, a scalar (`TaskLoss`).
        params: any pytree of floating-point tensors; those that the loss does not use have a
            gradient of zero, but it must use one.
        tasks: ``TaskBatch(support, query)``, every leaf ``[T, ...]``.
        engine: as for `meta_gradient`.
        chunk_size: tasks at a time; None takes all T at once. The result is the same.
        has_aux: ``task_loss`` gives a pair of the loss and a dict of named tensors, which come back
            in ``diagnostics`` with a task axis in front.

    Returns:
        ``MetaGradient``, detached: ``query_losses`` are ℓ of each task, ``support_losses``
        ``[T, 0]``.

    Raises:
        SettingError: an unknown engine, a chunk size below 1, task leaves whose leading axes
            differ, sets without samples; a loss that is not a scalar or in which no parameter has
            a part.
        VectorizationError: a loss that vmap cannot take and ``engine="loop"`` can.
    """
    check_floating(params, "params")
    chosen = choose_engine(engine)
    check_sets(tasks, 1)
    program = TaskLossGradient(task_loss, has_aux)
    return mean_gradient(program, params, tasks, engine=chosen, chunk_size=chunk_size)


@dataclass(frozen=True)
class TaskLossGradient:
    """A `TaskProgram`: the gradient of a loss of a task."""

    task_loss: Callable[[Params, Batch, Batch], Any]
    has_aux: bool
    learnt: Any = ()
    stackable: bool = True

    def with_learnt(self, learnt: Any, *, stacked: bool = False) -> TaskLossGradient:
        """See `TaskProgram`; there is nothing beside the parameters."""
        return self

    def __call__(
        self, params: Params, values: Values, task: TaskBatch, execution: Execution
    ) -> TaskGradient:
        """See `TaskProgram`."""
        _, spec = flatten(params)
        loss_of = execution.lift(self._loss_and_named)
        found: dict[str, Tensor] = {}

        def loss(values: Values) -> Tensor:
            value: Tensor
            value, named = loss_of(unflatten(values, spec), *task)
            found.update(named)
            return value

        try:
            grads, value = execution.backend.gradient(loss, values, differentiable=False)
        except UnreachedError as error:
            raise UnreachedError("task_loss", error.value, error.accepted) from None
        named = {name: tensor.detach() for name, tensor in found.items()}
        return TaskGradient(grads, (), value, [], named)

    def _loss_and_named(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The value of the loss, which is checked, and what comes with it."""
        found = call_given(self.task_loss, "task_loss", *inputs)
        if not self.has_aux:
            return check_scalar(found, "task_loss"), {}
        if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
            accepted = "a pair of a loss and a dict of named tensors is needed with has_aux=True"
            raise SettingError("task_loss", type(found).__name__, accepted)
        check_tensors(found[1], "task_loss")
        return check_scalar(found[0], "task_loss"), found[1]
