"""Which parameters of a loss the collector covers, found once and kept with the loss.

Axes: N samples.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from metalearn.core.chunking import chunks, sample_count
from metalearn.core.samples.layer_io import Collected, Received, collect
from metalearn.core.samples.layer_rules import rules_version
from metalearn.core.samples.sample_gradients import KnownNorms
from metalearn.core.tree import flatten
from metalearn.types import Batch

__all__ = ["Structure", "collect_covered", "structure_of"]

_MOST = 16  # kinds of batches and parameters that are kept for one loss


class Structure(NamedTuple):
    """How a loss uses each of its parameters."""

    calls: tuple[int, ...]
    """How many calls with a rule take it."""
    rest: tuple[bool, ...]
    """Whether it is used in another way too."""

    def covers(self, index: int) -> bool:
        """Whether calls with rules are all that a parameter is used for."""
        return self.calls[index] > 0 and not self.rest[index]

    def is_used_once(self, index: int) -> bool:
        """Whether one call makes up all of a parameter's gradient."""
        return self.covers(index) and self.calls[index] == 1

    def holds(self, found: Collected) -> bool:
        """Whether parameters that were used once were so again."""
        once = [i for i in range(len(self.calls)) if self.is_used_once(i)]
        return all(found.calls[i] <= 1 and not found.rest[i] for i in once)


def collect_covered(
    owner: Callable[..., object],
    loss: Callable[[list[Tensor], Any], Tensor],
    params: list[Tensor],
    batch: Batch,
    *,
    norms_alone: bool = False,
) -> Collected:
    """As `collect`, with rules for parameters that are used by calls with rules alone.

    Args:
        owner: as for `structure_of`, as is ``loss``.
        loss: of leaves and one sample.
        params: the leaves.
        batch: of samples.
        norms_alone: keep inputs and output gradients no longer than norms need them.
    """
    structure = structure_of(owner, loss, params, batch)
    covered = [structure.covers(i) for i in range(len(params))]
    once = [norms_alone and structure.is_used_once(i) for i in range(len(params))]

    def take(received: Received) -> Collected:
        wanted = covered.__getitem__
        return collect(loss, params, batch, wanted=lambda i, call: wanted(i), received=received)

    found = take(lambda i, gradients: KnownNorms(gradients) if once[i] else gradients)
    if structure.holds(found):
        return found
    _forget(owner)  # it does otherwise than it did
    return take(lambda i, gradients: gradients)


def structure_of(
    owner: Callable[..., object],
    loss: Callable[[list[Tensor], Any], Tensor],
    params: list[Tensor],
    batch: Batch,
    *,
    anew: bool = False,
) -> Structure:
    """What one sample shows of a loss; remembered for the same function and the same shapes.

    Args:
        owner: the user's function, to which the structure belongs and which is not kept alive.
        loss: made of it, of leaves and one sample, as `collect` takes it.
        params: the leaves.
        batch: of samples.
        anew: look again even where something is remembered.
    """
    sample_count(batch)  # refuses what is no batch
    kept, key = _kept_of(owner), _key(params, batch)
    if kept is not None and key in kept and not anew:
        return kept[key]
    found = collect(loss, params, next(chunks(batch, 1)))
    structure = Structure(tuple(found.calls), tuple(found.rest))
    if kept is not None:
        if len(kept) >= _MOST:
            kept.clear()
        kept[key] = structure
    return structure


def _forget(owner: Callable[..., object]) -> None:
    kept = _kept_of(owner)
    if kept is not None:
        kept.clear()


_memory: dict[tuple[int, int], tuple[weakref.ref[Any], dict[Any, Structure]]] = {}


def _kept_of(function: Any) -> dict[Any, Structure] | None:
    """What is remembered of a function, or of a method of an object; None where nothing can be."""
    owner = getattr(function, "__self__", function)
    place = id(owner), id(getattr(function, "__func__", function))
    known = _memory.get(place)
    if known is not None and known[0]() is owner:
        return known[1]
    try:
        reference = weakref.ref(owner, lambda _: _memory.pop(place, None))
    except TypeError:
        return None
    _memory[place] = reference, {}
    return _memory[place][1]


def _key(params: list[Tensor], batch: Batch) -> Any:
    samples, spec = flatten(batch)
    shapes = tuple((v.shape, v.dtype) for v in params)
    return rules_version(), spec, shapes, tuple((x.shape[1:], x.dtype) for x in samples)
