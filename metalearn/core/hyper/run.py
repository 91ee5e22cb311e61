"""A training run as a function of its initial parameters and of what shapes it.

Axes: K steps, R outer losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.core._functorch import transforms_active
from metalearn.core.autodiff.backend import Backend, Eager, Functional, Values
from metalearn.core.checks import call_given
from metalearn.core.loss_checks import UnreachedError, check_reached, scalar_loss
from metalearn.core.meta.adaptation import Batches, InnerLoop
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.ops import decomposed_operations_in_loss
from metalearn.core.tree import (
    check_floating,
    check_like,
    flatten,
    leaf_names,
    leaves,
    match_names,
    tree_map,
    unflatten,
)
from metalearn.errors import SettingError, check_whole
from metalearn.types import Batch, Params

__all__ = ["Run", "batches_of", "run_of"]

Loss = Callable[[Params, Any, Batch], Tensor]
"""``loss(params, hyper, batch)``."""


@dataclass(frozen=True)
class Run:
    """K steps of an optimiser, on leaves: those of the parameters, then those of ``hyper``."""

    loop: InnerLoop
    batches: Batches
    steps: int
    start: Values
    state: Any
    outer: Callable[[Values], Tensor]
    """The outer loss of all leaves, a scalar or ``[R]``."""
    count: int
    """How many leaves are those of the parameters."""
    specs: tuple[Any, Any]
    """Of the trees of parameters and of ``hyper``."""

    def reached(self, value: Tensor) -> Tensor:
        """The outer loss, refused where no leaf has a part in it; not inside a transform."""
        if transforms_active():
            return value
        try:
            return check_reached(value, "outer_loss")
        except UnreachedError as error:
            accepted = "a loss is needed that is computed from the parameters, or from hyper"
            raise SettingError("outer_loss", "nothing of them in it", accepted) from error

    def apart(self, values: Sequence[Any]) -> tuple[Any, Any]:
        """Trees like the parameters and like ``hyper``."""
        own, shaping = values[: self.count], values[self.count :]
        return unflatten(own, self.specs[0]), unflatten(shaping, self.specs[1])


def run_of(
    inner_loss: Loss,
    outer_loss: Loss,
    params: Params,
    hyper: Any,
    inner_batches: Any,
    outer_batch: Batch,
    *,
    optimizer: InnerOptimizer,
    steps: int | None,
    frozen: str | Sequence[str] | None,
    state: Any,
) -> Run:
    """The run of checked arguments; see `hyper_gradient`, whose arguments these are."""
    check_floating(params, "params")
    if leaves(hyper):
        check_floating(hyper, "hyper")
    batches, count = batches_of(inner_batches, steps)
    own, spec = flatten(tree_map(Tensor.detach, params))
    shaping, other = flatten(tree_map(Tensor.detach, hyper))
    moving = [not fixed for fixed in match_names(params, frozen, "frozen")]
    if not any(moving):
        raise SettingError("frozen", frozen, "patterns that leave a parameter to train are needed")
    if optimizer.support_batch is not None:
        accepted = "None is needed: batches come step by step"
        raise SettingError("support_batch", optimizer.support_batch, accepted)
    optimizer = optimizer.detached()
    if optimizer.match is not None:
        named = zip(leaf_names(params), own, moving)
        adapting = [(name, value) for name, value, moves in named if moves]
        optimizer = optimizer.match([n for n, _ in adapting], [v for _, v in adapting])

    def trees(values: Values) -> tuple[Any, Any]:
        return unflatten(values[: len(own)], spec), unflatten(values[len(own) :], other)

    inner = scalar_loss(inner_loss)

    def descended(values: Values, batch: Batch) -> Tensor:
        with decomposed_operations_in_loss():
            return inner(*trees(values), batch)

    def outer(values: Values) -> Tensor:
        with decomposed_operations_in_loss():
            found = call_given(outer_loss, "outer_loss", *trees(values), outer_batch)
        return _outer_value(found)

    backend: Backend = Functional() if transforms_active() else Eager()
    loop = InnerLoop(descended, [*moving, *[False] * len(shaping)], optimizer, backend)
    start = [*own, *shaping]
    fresh = loop.start(start)
    state = fresh if state is None else _checked_state(state, fresh)
    _check_schedules(optimizer, count, state)
    return Run(loop, batches, count, start, state, outer, len(own), (spec, other))


def batches_of(given: Any, steps: int | None) -> tuple[Batches, int]:
    """Batches by step, and K.

    Raises:
        SettingError: no sequence and no function, another K than a sequence has, a function that
            gives another batch when it is asked again.
    """
    if callable(given):
        if steps is None:
            accepted = "the number of steps is needed where batches are a function of the step"
            raise SettingError("steps", None, accepted)
        check_whole("steps", steps, 1)
        _check_addressed(given)
        return Batches(given), steps
    if not isinstance(given, Sequence) or isinstance(given, str):
        accepted = "a sequence of batches, or a function from the number of a step to its batch,"
        raise SettingError("inner_batches", type(given).__name__, f"{accepted} is needed")
    count = len(given)
    if steps is not None and (type(steps) is not int or steps != count):
        raise SettingError("steps", steps, f"None is needed, or {count}, as many as batches")
    if not count:
        raise SettingError("inner_batches", "no batch", "at least one step is needed")
    return Batches(given.__getitem__), count


def _check_schedules(optimizer: InnerOptimizer, steps: int, state: Any) -> None:
    """One step size for each step; those before an optimiser's state are counted in it."""
    counts = [v for v in leaves(state) if not _is_floating(v)]
    wanted = steps + (counts[0] if counts and isinstance(counts[0], int) else 0)
    for length in optimizer.schedule_lengths:
        if length != wanted:
            accepted = f"{wanted} are needed, one for each step, earlier runs' among them"
            raise SettingError("lr", f"{length} values", accepted)


def _check_addressed(batch_of: Callable[[int], Batch]) -> None:
    """Refuse what draws anew: the way back asks for a step's batch again."""
    one, other = (leaves(call_given(batch_of, "inner_batches", 0)) for _ in range(2))
    same = len(one) == len(other) and all(
        a.shape == b.shape and torch.equal(a, b) if isinstance(a, Tensor) else a is b or a == b
        for a, b in zip(one, other)
    )
    if not same:
        accepted = "a function is needed that gives the same batch whenever a step is asked for"
        raise SettingError("inner_batches", "another batch of step 0", accepted)


def _outer_value(value: Any) -> Tensor:
    fits = isinstance(value, Tensor) and value.dim() <= 1 and value.is_floating_point()
    if not fits or not value.numel():
        shown = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise SettingError("outer_loss", shown, "a scalar, or a vector of R losses, is needed")
    found: Tensor = value
    return found


def _checked_state(state: Any, like: Any) -> Any:
    """The state of an earlier run; counts of steps may be tensors."""
    wanted = "the state that a run with this optimiser and these parameters gave is needed"
    given, own = leaves(state), leaves(like)
    try:
        check_like(
            [v for v in given if _is_floating(v)], [v for v in own if _is_floating(v)], "state"
        )
    except SettingError as error:
        raise SettingError("state", error.value, wanted) from error
    supply = iter(given)
    if [_is_floating(v) or _is_count(v) for v in given] != [True] * len(own):
        raise SettingError("state", [type(v).__name__ for v in given], wanted)
    return tree_map(lambda _: _taken(next(supply)), like)


def _taken(leaf: Any) -> Any:
    return leaf.detach() if _is_floating(leaf) else int(leaf)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _is_count(leaf: Any) -> bool:
    """Whether it is a number of steps."""
    if isinstance(leaf, Tensor):
        return not leaf.dim() and leaf.dtype == torch.int64
    return isinstance(leaf, int) and not isinstance(leaf, bool)
