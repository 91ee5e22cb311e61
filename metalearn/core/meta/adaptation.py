"""How a task is adapted to: a few steps of an inner optimiser on the loss of its support set.

Written for one task. With the backend `Eager`, leaves ``[T, ...]`` and a loss that gives ``[T]``,
the same lines serve T tasks at once: nothing mixes tasks.
Axes: T tasks, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from metalearn.core.autodiff.backend import Backend, Functional, Values
from metalearn.core.loss_checks import scalar_loss
from metalearn.core.meta.inner_gradients import clipped_to, part_of_support
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.tree import check_floating, flatten, leaf_names, match_names, unflatten
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import check_fields, known_fields
from metalearn.types import Batch, LossFn, Params

__all__ = ["Adaptation", "Batches", "InnerLoop", "InnerStep"]

Lift = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes of a function of one task what an engine calls in its place."""


class InnerStep(NamedTuple):
    """A point of the inner loop."""

    params: Params
    """θ_k."""
    loss: Tensor | None
    """Support loss at θ_{k−1}, whose gradient led here; None at the start."""


@known_fields
@dataclass(frozen=True)
class Adaptation:
    """K inner steps θ_{k+1} = θ_k + U(∇L(θ_k)) on a task's support set.

    Attributes:
        loss: ``loss(params, batch)``, the mean loss of a batch, a scalar.
        optimizer: U: `sgd`, `adam` or `adamw` of `metalearn.core`, or any other pure pair. Beyond
            the end of a schedule of step sizes its last value holds.
        steps: K, at least 0.
        frozen: shell-style pattern, or several, over dotted parameter names; matching parameters
            stay as they are.

    Raises:
        SettingError: a field of another kind, negative steps.
    """

    loss: LossFn
    optimizer: InnerOptimizer
    steps: int
    frozen: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_whole("steps", self.steps, 0)

    def trajectory(
        self, params: Params, support: Batch, *, backend: Backend | None = None
    ) -> Iterator[InnerStep]:
        """Yield θ_0 … θ_K of one task, each with the support loss of the step that led there.

        With a ``backend`` gradients are taken by it and not differentiated in turn.

        Raises:
            SettingError: parameters that are not floating-point tensors; what `loop` refuses; a
                loss that is not a scalar or in which no parameter that adapts has a part.
        """
        check_floating(params, "params")
        return self.loop(params, backend or Functional()).walk(
            params, support, self.steps, differentiable=backend is None
        )

    def detached(self) -> Adaptation:
        """The same, what the optimiser learns taken as constants of autograd."""
        optimizer = self.optimizer.detached()
        return self if optimizer is self.optimizer else replace(self, optimizer=optimizer)

    def check_schedule(self, params: Params) -> None:
        """Refuse step sizes for another number of inner steps than are taken.

        Raises:
            SettingError: and what `loop` refuses.
        """
        for length in self.loop(params, Functional()).optimizer.schedule_lengths:
            if self.steps and length != self.steps:
                accepted = f"{self.steps} are needed, one for each inner step"
                raise SettingError("lr", f"{length} values", accepted)

    def loop(
        self, params: Params, backend: Backend, lift: Lift | None = None, *, lead: int = 0
    ) -> InnerLoop:
        """The inner step for trees like ``params``, with the loss that ``lift`` makes of this one.

        ``lead`` is 1 where leaves have T tasks in front, that is where ``lift`` makes a loss of
        those.

        Raises:
            SettingError: a pattern in ``frozen`` that matches nothing; step sizes that do not fit
                the parameters that adapt.
        """
        values, spec = flatten(params)
        moving = [not fixed for fixed in match_names(params, self.frozen, "frozen")]
        optimizer = self.optimizer
        if optimizer.match is not None:
            named = zip(leaf_names(params), values, moving)
            adapting = [(name, value) for name, value, moves in named if moves]
            optimizer = optimizer.match([n for n, _ in adapting], [v for _, v in adapting])
        loss = scalar_loss(self.loss)
        lifted = loss if lift is None else lift(loss)
        return InnerLoop(
            lambda values, batch: lifted(unflatten(values, spec), batch),
            moving,
            optimizer,
            backend,
            lead,
        )


@dataclass(frozen=True)
class Batches:
    """Data that come step by step, in the place of one support set for all steps."""

    at: Callable[[int], Batch]
    """The batch of a step, counted from 0; the same whenever it is asked for."""


@dataclass(frozen=True)
class InnerLoop:
    """The inner step (θ, s) → (θ', s') on lists of leaves, s the state of the optimiser."""

    loss: Callable[[list[Tensor], Batch], Tensor]
    """Loss of all leaves and a batch."""
    moving: Sequence[bool]
    """Which leaves adapt."""
    optimizer: InnerOptimizer
    backend: Backend
    lead: int = 0
    """How many axes tasks have in front of every leaf, 0 or 1."""

    def batch(self, support: Batch, step: int) -> Batch:
        """What inner step ``step``, counted from 0, sees of the support set."""
        if isinstance(support, Batches):
            return support.at(step)
        size = self.optimizer.support_batch
        return support if size is None else part_of_support(support, size, step, self.lead)

    def start(self, values: Sequence[Tensor]) -> Any:
        """State of the optimiser before the first step."""
        return self.optimizer.init(self.adapting(values))

    def step(
        self,
        values: Sequence[Tensor],
        state: Any,
        support: Batch,
        *,
        differentiable: bool = True,
        unread: bool = False,
    ) -> tuple[list[Tensor], Any, Tensor]:
        """θ', s', and at θ the loss of ``support``, which is what `batch` gives.

        With ``unread`` nobody reads θ' and s', only their graph.
        """
        unread = unread and self.optimizer.is_linear
        grads, loss = self.slope(values, support, differentiable=differentiable, unread=unread)
        return *self.advance(values, state, grads), loss

    def slope(
        self,
        values: Sequence[Tensor],
        support: Batch,
        *,
        differentiable: bool = True,
        unread: bool = False,
    ) -> tuple[Values, Tensor]:
        """Gradients of the support loss for the leaves that adapt, and the loss."""
        more = {"unread": True} if unread else {}  # which backends of one's own do not know
        return self.backend.gradient(
            lambda part: self.loss(self.merge(values, part), support),
            self.adapting(values),
            differentiable=differentiable,
            **more,
        )

    def advance(
        self, values: Sequence[Tensor], state: Any, grads: Values
    ) -> tuple[list[Tensor], Any]:
        """θ' and s' after a step along given gradients, which are clipped here."""
        if self.optimizer.clip_norm is not None:
            unmoved = self.optimizer.unmoved
            grads = clipped_to(self.optimizer.clip_norm, grads, self.lead, unmoved=unmoved)
        moved, state = self.optimizer.step(grads, state, self.adapting(values))
        return self.merge(values, moved), state

    def walk(
        self, params: Params, support: Batch, steps: int, *, differentiable: bool
    ) -> Iterator[InnerStep]:
        """θ_0 … θ_K as trees."""
        values, spec = flatten(params)
        state = self.start(values)
        yield InnerStep(params, None)
        for k in range(steps):
            batch = self.batch(support, k)
            values, state, loss = self.step(values, state, batch, differentiable=differentiable)
            yield InnerStep(unflatten(values, spec), loss)

    def with_learnt(self, learnt: Any) -> InnerLoop:
        """The same with other values of what the optimiser learns."""
        return replace(self, optimizer=self.optimizer.with_learnt(learnt))

    def adapting(self, values: Sequence[Tensor]) -> Values:
        """The leaves that adapt."""
        return [v for v, moves in zip(values, self.moving) if moves]

    def merge(self, values: Sequence[Tensor], part: Sequence[Tensor]) -> Values:
        """All leaves, those that adapt taken from ``part``."""
        supply = iter(part)
        return [next(supply) if moves else v for v, moves in zip(values, self.moving)]
