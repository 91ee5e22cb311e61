"""Which parameters of a loss the collector covers, found once and kept with the loss.

Axes: N samples.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.core._functorch import transforms_active
from metalearn.core.autodiff.lean_gradient import is_differentiated
from metalearn.core.chunking import chunks, sample_count
from metalearn.core.memory import is_out_of_memory, keep_freed_memory
from metalearn.core.samples.batch_trial import can_be_tried, tried_steps
from metalearn.core.samples.layer_hooks import Received
from metalearn.core.samples.layer_io import Collected, collect
from metalearn.core.samples.layer_rules import rules_version
from metalearn.core.samples.sample_gradients import KnownNorms, SampleGradients
from metalearn.core.samples.whole_batch import Step, WholeLoss, collect_whole
from metalearn.core.tracing import is_traced
from metalearn.core.tree import flatten
from metalearn.types import Batch

__all__ = ["Structure", "collect_covered", "structure_of"]

_ROOM = 2**21  # numbers that formed gradients may take beyond inputs and output gradients
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
    whole: WholeLoss | None = None,
    norms_alone: bool = False,
    norms_and_sums: bool = False,
) -> Collected:
    """As `collect`, with rules for parameters that are used by calls with rules alone.

    Args:
        owner: as for `structure_of`, as is ``loss``.
        loss: of leaves and one sample.
        params: the leaves.
        batch: of samples.
        whole: the same loss of a batch, where it has one; taken in the place of ``loss`` in one
            ordinary pass, if a trial has shown that samples go through it side by side.
        norms_alone: keep inputs and output gradients no longer than norms need them.
        norms_and_sums: keep what these two are made of quickest.
    """
    known = _known(owner, loss, params, batch)
    structure = known.structure
    covered = [structure.covers(i) for i in range(len(params))]
    once = [structure.is_used_once(i) for i in range(len(params))]

    def kept(index: int, gradients: SampleGradients) -> SampleGradients:
        return KnownNorms(gradients) if norms_alone and once[index] else gradients

    room = _ROOM

    def in_short(index: int, gradients: SampleGradients) -> SampleGradients:
        nonlocal room
        if not once[index]:
            return gradients
        gradients, more = gradients.in_short(room)
        room -= more
        return gradients

    if whole is not None and not any(structure.rest) and _is_concrete(params, batch):
        found = known.collected(whole, params, batch, in_short if norms_and_sums else kept)
        if found is not None and structure.holds(found):
            return found

    def take(received: Received) -> Collected:
        wanted = covered.__getitem__
        return collect(loss, params, batch, wanted=lambda i, call: wanted(i), received=received)

    found = take(kept)
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
    return _known(owner, loss, params, batch, anew=anew).structure


@dataclass
class _Known:
    """What is remembered of a loss."""

    structure: Structure
    is_kept: bool
    steps: tuple[Step, ...] | None = None
    """Of a whole batch; None where it is not known to be taken at once."""
    trials: int = 2
    """That may still be made."""

    def collected(
        self,
        whole: WholeLoss,
        params: list[Tensor],
        batch: Batch,
        received: Received,
    ) -> Collected | None:
        """What one ordinary pass over the batch gives; None where there cannot be one."""
        if self.steps is None and self.is_kept and self.trials and can_be_tried(batch):
            self.trials -= 1
            self.steps = tried_steps(whole, params, batch)
        if self.steps is None or sample_count(batch) < 2:  # one sample is never tried
            return None
        if params[0].device.type == "cpu":
            keep_freed_memory()
        try:
            return collect_whole(whole, params, batch, self.steps, received)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.steps = None  # the way by vmap will say what is wrong
            return None


def _known(
    owner: Callable[..., object],
    loss: Callable[[list[Tensor], Any], Tensor],
    params: list[Tensor],
    batch: Batch,
    *,
    anew: bool = False,
) -> _Known:
    sample_count(batch)  # refuses what is no batch
    kept, key = _kept_of(owner), _key(params, batch)
    if kept is not None and key in kept and not anew:
        return kept[key]
    found = collect(loss, params, next(chunks(batch, 1)))
    structure = Structure(tuple(found.calls), tuple(found.rest))
    known = _Known(structure, kept is not None)
    if kept is not None:
        if len(kept) >= _MOST:
            kept.clear()
        kept[key] = known
    return known


def _is_concrete(params: list[Tensor], batch: Batch) -> bool:
    """Whether values can be looked at, and no further derivative is to be taken."""
    tensors = [*params, *flatten(batch)[0]]
    if transforms_active() or is_differentiated(tensors):
        return False
    if torch.is_inference_mode_enabled() or is_traced():
        return False
    return all(type(x) in (Tensor, torch.nn.Parameter) for x in tensors)


def _forget(owner: Callable[..., object]) -> None:
    kept = _kept_of(owner)
    if kept is not None:
        kept.clear()


_memory: dict[tuple[int, int], tuple[weakref.ref[Any], dict[Any, _Known]]] = {}


def _kept_of(function: Any) -> dict[Any, _Known] | None:
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
