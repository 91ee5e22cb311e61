"""The way back from θ_K to θ_0, one recomputed step at a time, from the states that were kept.

Axes: K inner steps, R cotangents that are carried at once.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metalearn.core.autodiff.backend import Eager, Pull, Values
from metalearn.core.meta.adaptation import InnerLoop
from metalearn.core.meta.adapted_task import walk
from metalearn.core.meta.kept_states import places_to_keep
from metalearn.core.meta.step_series import StepSeries
from metalearn.core.tree import flatten, leaves, tree_map, unflatten
from metalearn.types import Batch

__all__ = ["BackwardWalk", "State"]

State = tuple[Values, Any]
"""Leaves, and the state of the optimiser."""

After = Callable[[int, State], None]
"""Told of k, and the state there."""


@dataclass
class BackwardWalk:
    """A walk forward from θ_0 to θ_K, and back with a cotangent of θ_K.

    For a step θ' = θ + U(g(θ)) and a cotangent v the way back is v + H(θ)·(∂U/∂g)ᵀ·v; the Hessian
    product comes from differentiating the recomputed step in reverse. Leaves that do not move stay
    as they are, and gather their part of every step.

    Attributes:
        loop: the inner step.
        support: what `InnerLoop.batch` takes.
        steps: K.
        states: how many states are kept at once, at least 1; None keeps all K.
        many: whether cotangents have R in front.
    """

    loop: InnerLoop
    support: Batch
    steps: int
    states: int | None = None
    many: bool = False
    constant_slopes: bool = False
    """Whether inner gradients are constants, as in first order."""
    position: int = 0
    """k, where the cotangents are those of θ_k."""
    cotangent: Values = field(default_factory=list)
    """Of all leaves at ``position``."""
    state_cotangent: Values = field(default_factory=list)
    """Of the tensors of the optimiser's state there."""
    learnt: Values = field(default_factory=list)
    """Gradients of what the optimiser learns, of the steps gone back over."""
    recorded: Pull | None = None
    """The way back over the step before ``position``, where it was taken with its graph."""
    kept: MutableMapping[int, State] = field(default_factory=dict)
    """States by k; a mapping of one's own may keep them elsewhere than in memory."""

    def forward(
        self,
        start: Values,
        state: Any = None,
        *,
        at: int = 0,
        losses: list[Tensor] | StepSeries | None = None,
        after: After | None = None,
        recorded: bool = False,
    ) -> State:
        """From θ_0 to θ_K; gives the last state.

        Args:
            start: leaves of θ_0.
            state: of the optimiser there; None starts anew.
            at: k, where ``start`` and ``state`` are those of θ_k, and what was to be kept before it
                is in ``kept``.
            losses: the loss before each step is appended to it.
            after: told of every state on the way, from ``at`` on.
            recorded: keep the graph of the last step, so that `back` need not take it again; where
                the backend's graphs outlive a call, which those of torch.func do not.
        """
        begin = start, self.loop.start(start) if state is None else state
        if not at:
            self.kept[0] = begin
        free = self.steps if self.states is None else self.states - 1
        places = set(places_to_keep(self.steps, free))
        plain = isinstance(self.loop.backend, Eager) and not (self.constant_slopes or self.many)
        recorded = recorded and plain and at < self.steps
        end = self._advance(begin, at, self.steps - recorded, places, losses, after)
        return self._record(*end, losses, after) if recorded else end

    def begin(self, cotangent: Values, state: Any, *, at: int | None = None) -> None:
        """Take the cotangent of all leaves at θ_K, or θ_at, where that of the state is zero."""
        self.position = self.steps if at is None else at
        if self.position != self.steps:
            self.recorded = None
        self.cotangent = cotangent
        self.state_cotangent = [self._zeros(part, cotangent) for part in _tensors(state)]
        self.learnt = [self._zeros(v, cotangent) for v in leaves(self.loop.optimizer.learnt)]

    def back(self) -> State:
        """Go back over one step; gives the state that the cotangents are then of."""
        self.position -= 1
        values, state = self._state_before()
        tensors = _tensors(state)
        pull, self.recorded = self.recorded or self._pull_again(values, state), None
        pulled = pull([*self.cotangent, *self.state_cotangent])
        self.cotangent, rest = pulled[: len(values)], pulled[len(values) :]
        self.state_cotangent = rest[: len(tensors)]
        self.learnt = [a + b for a, b in zip(self.learnt, rest[len(tensors) :])]
        return values, state

    def add(self, part: Values) -> None:
        """Add to the cotangent of all leaves what a loss has at ``position``."""
        self.cotangent = [a + b for a, b in zip(self.cotangent, part)]

    def learnt_grads(self) -> Any:
        """A tree like what the optimiser learns."""
        return unflatten(self.learnt, flatten(self.loop.optimizer.learnt)[1])

    def _state_before(self) -> State:
        """The state at ``position``; where it was not kept, from the last that was."""
        first = max(self.kept)
        if first == self.position:
            return self.kept.pop(first)
        free = self.steps if self.states is None else self.states - len(self.kept)
        places = {first + place for place in places_to_keep(self.position + 1 - first, free)}
        state = self._advance(self.kept[first], first, self.position, places)
        self.kept.pop(self.position, None)
        return state

    def _pull_again(self, values: Values, state: Any) -> Pull:
        """The way back over the step from ``position``, which is taken for it."""
        learnt, spec = flatten(self.loop.optimizer.learnt)
        recomputed = _along_constants if self.constant_slopes else _recomputed
        batch = self.loop.batch(self.support, self.position)
        step = recomputed(self.loop, batch, values, state, spec)
        take = self.loop.backend.pull_many if self.many else self.loop.backend.pull
        return take(step, [*values, *_tensors(state), *learnt])

    def _record(
        self,
        values: Values,
        state: Any,
        losses: list[Tensor] | StepSeries | None,
        after: After | None,
    ) -> State:
        """Take the last step with its graph, for the way back."""
        learnt, spec = flatten(self.loop.optimizer.learnt)
        batch = self.loop.batch(self.support, self.steps - 1)
        self.kept[self.steps - 1] = values, state
        ends: list[tuple[Any, Tensor]] = []

        def step(inputs: Values) -> Values:
            own, before, moved = _taken_apart(self.loop, inputs, len(values), state, spec)
            after, later, loss = moved.step(own, before, batch)
            ends.append((tree_map(_detached, later), loss))
            return [*after, *_tensors(later)]

        inputs = [*values, *_tensors(state), *learnt]
        outputs, self.recorded = self.loop.backend.value_and_pull(step, inputs)
        later, loss = ends[0]
        if losses is not None:
            losses.append(loss)
        end = outputs[: len(values)], later
        if after is not None:
            after(self.steps, end)
        return end

    def _advance(
        self,
        begin: State,
        first: int,
        last: int,
        places: set[int],
        losses: list[Tensor] | StepSeries | None = None,
        after: After | None = None,
    ) -> State:
        """From the state at ``first`` to that at ``last``, keeping those at ``places``."""
        values, state = begin
        points = walk(self.loop, values, self.support, last, first=first, state=state)
        for k, (values, state, _, loss) in enumerate(points, start=first):
            if k in places:
                self.kept[k] = values, state
            if losses is not None and loss is not None:
                losses.append(loss)
            if after is not None:
                after(k, (values, state))
        return values, state

    def _zeros(self, like: Tensor, cotangent: Values) -> Tensor:
        lead = cotangent[0].shape[:1] if self.many else ()
        return like.new_zeros((*lead, *like.shape))


def _recomputed(
    loop: InnerLoop, batch: Batch, values: Values, state: Any, spec: Any
) -> Callable[[Values], Values]:
    """A step as a function of leaves, tensors of the state, and what is learnt."""

    def step(inputs: Values) -> Values:
        own, before, moved = _taken_apart(loop, inputs, len(values), state, spec)
        after, later, _ = moved.step(own, before, batch, unread=True)
        return [*after, *_tensors(later)]

    return step


def _along_constants(
    loop: InnerLoop, batch: Batch, values: Values, state: Any, spec: Any
) -> Callable[[Values], Values]:
    """The same with the inner gradients that there are, as constants."""
    slope, _ = loop.slope(values, batch, differentiable=False)

    def step(inputs: Values) -> Values:
        own, before, moved = _taken_apart(loop, inputs, len(values), state, spec)
        after, later = moved.advance(own, before, slope)
        return [*after, *_tensors(later)]

    return step


def _taken_apart(
    loop: InnerLoop, inputs: Values, count: int, state: Any, spec: Any
) -> tuple[Values, Any, InnerLoop]:
    """Leaves, a state like ``state``, and the loop with what is learnt."""
    supply = iter(inputs)
    values = [next(supply) for _ in range(count)]
    before = tree_map(lambda x: next(supply) if isinstance(x, Tensor) else x, state)
    return values, before, loop.with_learnt(unflatten(list(supply), spec))


def _tensors(state: Any) -> Values:
    return [part for part in leaves(state) if isinstance(part, torch.Tensor)]


def _detached(part: Any) -> Any:
    return part.detach() if isinstance(part, Tensor) else part
