"""Losses of which a part is the same at all inner steps: it is computed once for each set.

With the backend `Eager` and leaves ``[T, ...]`` the same lines serve T tasks at once.
Axes: T tasks, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from metalearn.core.autodiff.backend import Values
from metalearn.core.loss_checks import scalar_loss
from metalearn.core.meta.adaptation import Lift
from metalearn.core.meta.adapted_task import AdaptedTask, TaskGradient
from metalearn.core.tree import flatten, unflatten
from metalearn.types import Batch, Params

__all__ = ["LossInParts", "with_shared_part"]


@dataclass(frozen=True)
class LossInParts:
    """``rest(params, batch, shared(params, batch))``, where no parameter that adapts enters shared.

    That is the caller's word. `metalearn.core.meta_gradient` then takes ``shared`` once for the
    support and once for the query set, not at each of K inner steps; the gradient is the same, by
    every method and engine. Whoever calls it as any other loss has the value.

    Attributes:
        shared: gives a tree of floating-point tensors, such as features of a network's body.
        rest: gives a scalar.
    """

    shared: Callable[[Params, Batch], Any]
    rest: Callable[[Params, Batch, Any], Tensor]

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar."""
        return self.rest(params, batch, self.shared(params, batch))


def with_shared_part(
    parts: LossInParts,
    params: Params,
    task: AdaptedTask,
    method: Callable[[AdaptedTask], TaskGradient],
    lift: Lift,
) -> TaskGradient:
    """What a method gives of a task, the shared part of the loss taken once.

    What is shared are further leaves that stay as they are in the inner loop; their gradients go on
    through ``shared`` to those of the parameters.

    Args:
        parts: the loss of ``task.loop``.
        params: a tree whose structure the values have.
        task: with the inner loop of the loss as a whole.
        method: one of `metalearn.core.meta.methods`.
        lift: see `Adaptation.loop`.
    """
    loop, count = task.loop, len(task.start)
    _, spec = flatten(params)
    shared = lift(parts.shared)
    sets = {"support": task.support, "query": task.query}
    places: dict[str, Any] = {}

    def once(values: Values) -> Values:
        found: Values = []
        for name, batch in sets.items():
            leaves, tree = flatten(shared(unflatten(values, spec), batch))
            places[name] = slice(count + len(found), count + len(found) + len(leaves)), tree
            found += leaves
        return found

    def rest_of(params: Params, given: tuple[Batch, Any]) -> Tensor:
        return parts.rest(params, *given)

    rest = lift(scalar_loss(rest_of))

    def loss(values: Values, named: tuple[str, Batch]) -> Tensor:
        name, batch = named
        place, tree = places[name]
        given = batch, unflatten(values[place], tree)
        found: Tensor = rest(unflatten(values[:count], spec), given)
        return found

    features, pull = loop.backend.value_and_pull(once, task.start)
    found = method(
        task._replace(
            loop=replace(loop, loss=loss, moving=[*loop.moving, *[False] * len(features)]),
            start=[*task.start, *features],
            support=("support", task.support),
            query=("query", task.query),
        )
    )
    through = pull(found.grads[count:])
    return found._replace(grads=[a + b for a, b in zip(found.grads, through)])
