"""Inner-loop optimisers as pure pairs of functions.

``init(params) -> state`` and ``update(grads, state, params) -> (updates, state)``; the caller adds
the updates. Nothing is written in place, so a pair works inside ``vmap`` and can be differentiated
through. The interface is that of optax.
Axes: K inner steps, R rows that are stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metalearn.core.meta.hyperparameters import Hyperparameters
from metalearn.core.tree import leaves, tree_map
from metalearn.misfits import advise
from metalearn.reprs import one_line

__all__ = ["InnerOptimizer", "optimizer_of"]


@dataclass(frozen=True)
class InnerOptimizer:
    """A pure optimiser: ``init(params)`` and ``update(grads, state, params)``.

    What is learnt beside the parameters, for example step sizes, stands in ``learnt``;
    ``rebuild(learnt)`` is the same optimiser with other values. ``elementwise`` says that an
    element of the update depends on nothing but the same element of gradient, state and parameter,
    so that leaves may carry a task axis in front.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], tuple[Any, Any]]
    learnt: Any = ()
    rebuild: Callable[[Any], InnerOptimizer] | None = None
    elementwise: bool = False
    weight_decay: Any = 0.0
    """Of an L2 term that the optimiser adds to the loss, or a decay of the parameters."""
    fused: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None
    """`step` at once, where that saves passes over memory."""
    stack: Callable[[Any], InnerOptimizer] | None = None
    """The same optimiser for leaves ``[R, ...]``, with a value of what is learnt for each row."""
    match: Callable[[Sequence[str], Sequence[Tensor]], InnerOptimizer] | None = None
    """The same optimiser for parameters of these names and shapes."""
    schedule_lengths: frozenset[int] = frozenset()
    """How many steps have values of their own, where they have."""
    clip_norm: float | None = None
    """Of the gradients that an inner loop hands over; see `metalearn.core.with_gradients`."""
    support_batch: int | None = None
    """How many samples of the support set each is taken of; None takes all."""
    unmoved: frozenset[int] = frozenset()
    """Which leaves no gradient moves, by position; theirs have no part in the norm that clips."""
    linear_functions: tuple[Any, ...] = field(default=(), kw_only=True)
    """``update`` and ``fused`` where both are linear in gradients and nothing in them is learnt:
    these very functions, so that an optimiser made of this one with others is not taken for it."""

    @property
    def is_linear(self) -> bool:
        """Whether new parameters and state are linear in gradients."""
        own = self.update, self.fused
        known = len(self.linear_functions) == 2 and type(self) is InnerOptimizer
        same = known and all(a is b for a, b in zip(self.linear_functions, own))
        return same and self.clip_norm is None

    def __repr__(self) -> str:
        made = getattr(self.update, "__qualname__", type(self.update).__name__)
        return one_line(self, made.partition(".")[0].strip("_"))

    def step(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """The params with their updates added, and the new state."""
        if self.fused is not None:
            return self.fused(grads, state, params)
        updates, state = self.update(grads, state, params)
        return tree_map(lambda p, u: p + u, params, updates), state

    def with_learnt(self, learnt: Any) -> InnerOptimizer:
        """The same optimiser with other values of what it learns."""
        return self if self.rebuild is None else self.rebuild(learnt)

    def detached(self) -> InnerOptimizer:
        """The same optimiser, what it learns taken as constants of autograd."""
        if not any(leaf.requires_grad for leaf in leaves(self.learnt)):
            return self
        return self.with_learnt(tree_map(Tensor.detach, self.learnt))


def optimizer_of(
    given: Hyperparameters,
    make: Callable[[Hyperparameters], InnerOptimizer],
    init: Any,
    update: Any,
    fused: Any = None,
    *,
    linear: bool = False,
) -> InnerOptimizer:
    """A pair of `init` and `update` with what is learnt in it; ``make`` builds it from others."""
    learnt = given.learnt
    learns = bool(leaves(learnt))

    def match(names: Sequence[str], values: Sequence[Tensor]) -> InnerOptimizer:
        return make(given.matched(names, values))

    return InnerOptimizer(
        init,
        update,
        learnt,
        (lambda other: make(given.replaced(other, stacked=given.stacked))) if learns else None,
        elementwise=True,
        weight_decay=given.values["weight_decay"],
        fused=fused,
        stack=(lambda other: make(given.replaced(other, stacked=True))) if learns else None,
        match=match if learns else None,
        schedule_lengths=given.schedule_lengths,
        linear_functions=(update, fused) if linear and not learns else (),
    )


_OURS = {torch.optim.SGD: "sgd", torch.optim.Adam: "adam", torch.optim.AdamW: "adamw"}


def _advice(value: Any) -> str | None:
    """What to write in place of an optimiser of torch's, which writes in place."""
    of_torch = isinstance(value, torch.optim.Optimizer)
    kind = type(value) if of_torch else value
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
        group = value.param_groups[0] if of_torch else {}
        rate = group.get("lr", 0.1)
        momentum = group.get("momentum", 0)
        settings = f"{rate}, momentum={momentum}" if momentum else f"{rate}"
        ours = f"metalearn.core.{_OURS.get(kind, 'sgd')}({settings})"
        return f"an InnerOptimizer is needed, which is differentiated through: {ours}"
    if isinstance(value, str | float | int) or callable(value):
        return "an InnerOptimizer is needed, such as metalearn.core.sgd(0.1)"
    return None


advise(InnerOptimizer, _advice)
