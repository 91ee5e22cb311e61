"""Which parameters of a loss the collector covers, found once and kept with the loss.

Axes: N samples.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from metalearn.core.chunking import chunks, sample_count
from metalearn.core.samples.layer_io import Collected, collect
from metalearn.core.samples.layer_rules import rules_version
from metalearn.core.tree import flatten
from metalearn.types import Batch, LossFn, Params

__all__ = ["Structure", "forget_structure", "structure_of"]

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


def structure_of(
    loss_fn: LossFn,
    loss: Callable[[Any, Any], Any],
    params: Params,
    batch: Batch,
    *,
    anew: bool = False,
) -> Structure:
    """What one sample shows of a loss; remembered for the same function and the same shapes.

    Args:
        loss_fn: the user's, to which the structure belongs; the memory does not keep it alive.
        loss: the same of leaves and one sample, as `collect` takes it.
        params: of the loss.
        batch: of samples.
        anew: look again even where something is remembered.
    """
    sample_count(batch)  # refuses what is no batch
    kept, key = _kept_of(loss_fn), _key(params, batch)
    if kept is not None and key in kept and not anew:
        return kept[key]
    found = collect(loss, flatten(params)[0], next(chunks(batch, 1)))
    structure = Structure(tuple(found.calls), tuple(found.rest))
    if kept is not None:
        if len(kept) >= _MOST:
            kept.clear()
        kept[key] = structure
    return structure


def forget_structure(loss_fn: LossFn) -> None:
    """Look again the next time, because the loss did otherwise."""
    kept = _kept_of(loss_fn)
    if kept is not None:
        kept.clear()


_memory: dict[tuple[int, int], tuple[weakref.ref[Any], dict[Any, Structure]]] = {}


def _kept_of(loss_fn: Any) -> dict[Any, Structure] | None:
    """What is remembered of a function, or of a method of an object; None where nothing can be."""
    owner, function = getattr(loss_fn, "__self__", loss_fn), getattr(loss_fn, "__func__", loss_fn)
    place = id(owner), id(function)
    known = _memory.get(place)
    if known is not None and known[0]() is owner:
        return known[1]
    try:
        reference = weakref.ref(owner, lambda _: _memory.pop(place, None))
    except TypeError:
        return None
    _memory[place] = reference, {}
    return _memory[place][1]


def _key(params: Params, batch: Batch) -> Any:
    values, spec = flatten(params)
    samples, batch_spec = flatten(batch)
    shapes = tuple((tuple(v.shape), v.dtype) for v in values)
    shown = tuple((tuple(x.shape[1:]), x.dtype) for x in samples)
    return rules_version(), spec, batch_spec, shapes, shown
