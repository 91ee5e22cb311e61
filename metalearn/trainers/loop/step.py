"""A training step as five functions in a row: gradient, reduce, finish, clip, update.

The first is the objective's; the rest stand here and in the neighbouring files. They are pure on
tensors, so the same composition runs eagerly, compiled as a whole, over ranks and with noise.

Axes: M members, or 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

__all__ = ["Proposal", "Proposes", "StepGradient", "added", "finish", "like_layout"]


def _nothing_known() -> str:
    return "this step"


@dataclass(frozen=True)
class StepGradient:
    """What an objective says of one step, before ranks are summed.

    Losses and gradients are **sums** over ``count`` tasks or samples, divided by ``divisor``: 1 for
    plain sums, ``count`` for means. A batch may be empty, or vary in size.
    """

    grads: Mapping[str, Tensor]
    """By the name of the module's parameter; leaves of M members are ``[M, ...]``."""
    losses: Tensor
    """``[M]``; NaN for a member that is not trained."""
    shows_losses: bool = field(default=True, kw_only=True)
    """Whether they, and the memory that was taken, may be recorded; those of private data are not,
    and such losses are 0 here."""
    count: int
    """Tasks or samples (of each member) that the sums are over."""
    divisor: float = 1.0
    """What the sums have been divided by."""
    normalizer: float | None = None
    """What gradients are to be divided by; None is the count of all ranks."""
    noise: Callable[[Mapping[str, Tensor], float], Mapping[str, Tensor]] | None = None
    """Adds noise to gradients after the division, of which it gets the divisor; once, not on each
    rank, nor for each of several batches. Gets what is `beside` them too, and leaves it out."""
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    """Further sums, by names that no parameter has, for the noise alone; divided as gradients."""
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    """New values of buffers, by name, which the update writes."""
    scalars: Mapping[str, Tensor] = field(default_factory=dict)
    """Further numbers for the record of a step that is logged."""
    processed: int | None = None
    """Tasks or samples for the record of speed, those of every member counted; None is count."""
    suspects: Callable[[], str] = _nothing_known
    """Names the tasks or samples behind a value that is not finite."""


@dataclass(frozen=True)
class Proposal:
    """An update that has been computed, and not been made."""

    read: Tensor
    """``[2, M]``: norms of the gradients before clipping, and losses."""
    grads: Mapping[str, Tensor]
    """Clipped."""
    places: list[Tensor]
    values: list[Tensor]
    """What comes to stand in these places."""

    def make(self) -> None:
        """Make it."""
        with torch.no_grad():
            torch._foreach_copy_(self.places, self.values)


Proposes = Callable[[Mapping[str, Tensor], Tensor, float], Proposal | None]
"""Of gradients, means over the batch before clipping, losses ``[M]`` and the schedule's factor;
None where their update is to be made as it is."""


def added(one: StepGradient, other: StepGradient) -> StepGradient:
    """Sums over two batches of a step, so that each counts by its size: a divisor of 1.

    Normalisers add up. Scalars, and new values of buffers, which were all computed from those of
    before the step, are means weighted by the counts; of buffers that are whole numbers, the later.
    """
    sizes = one.count, other.count

    def expected(part: StepGradient) -> float:
        return part.count if part.normalizer is None else part.normalizer

    def suspects() -> str:
        bad = [part for part in (one, other) if not bool(torch.isfinite(part.losses).all())]
        return ", ".join(part.suspects() for part in bad or (one, other))

    def sums(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: value * one.divisor + theirs[name] * other.divisor
            for name, value in ours.items()
            if name in theirs  # else it is not trained
        }

    fixed = one.normalizer is not None or other.normalizer is not None
    return StepGradient(
        sums(one.grads, other.grads),
        one.losses * one.divisor + other.losses * other.divisor,
        sum(sizes),
        normalizer=expected(one) + expected(other) if fixed else None,
        noise=one.noise,
        beside=sums(one.beside, other.beside),
        buffers=_means(one.buffers, other.buffers, sizes),
        scalars=_means(one.scalars, other.scalars, sizes),
        processed=sum(p.count if p.processed is None else p.processed for p in (one, other)),
        suspects=suspects,
    )


def _means(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], sizes: tuple[int, int]
) -> dict[str, Tensor]:
    """Weighted by sizes; what one of both does not have, and what is whole, is the other's."""
    share = sizes[1] / max(sum(sizes), 1)
    both = {
        name: value + share * (other[name] - value)
        for name, value in one.items()
        if name in other and value.is_floating_point()
    }
    return {**one, **other, **both}


def finish(gradient: StepGradient) -> StepGradient:
    """Turn sums into means, and add noise where there is some.

    Gradients are Σ / normalizer, losses Σ / count; those of an empty batch are sums of nothing, 0.
    Where the sums are divided by that number already they are taken as they are.
    """
    count = max(gradient.count, 1)
    wanted = count if gradient.normalizer is None else gradient.normalizer
    if gradient.noise is None and not gradient.beside and wanted == count == gradient.divisor:
        return gradient  # they are means
    grads, losses = gradient.grads, gradient.losses
    if gradient.noise is not None:
        grads = {**grads, **gradient.beside}
    if wanted != gradient.divisor:
        factor = gradient.divisor / wanted
        grads = {name: grad * factor for name, grad in grads.items()}
    if count != gradient.divisor:
        losses = losses * (gradient.divisor / count)
    if gradient.noise is not None:
        grads = gradient.noise(grads, float(wanted))
    return replace(gradient, grads=grads, losses=losses, divisor=float(wanted), beside={})


def like_layout(grad: Tensor, parameter: Tensor) -> Tensor:
    """The same gradient with the strides of its parameter.

    Fused optimisers on a CPU pair elements by their place in memory (torch 2.14): with other
    strides they would step along a shuffled gradient without an error.
    """
    if grad.stride() == parameter.stride():
        return grad
    return torch.empty_like(parameter).copy_(grad)
