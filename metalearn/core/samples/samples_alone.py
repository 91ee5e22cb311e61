"""What the operations of a loss do to each of a few samples alone, written down.

Axes: N samples, ``[*one]`` the axes of a tensor where the batch is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from metalearn.core.samples.layer_calls import Answer, LayerCalls
from metalearn.core.samples.layer_hooks import Views
from metalearn.core.samples.layer_io import Collected, collect, seen_outside
from metalearn.core.samples.layer_rules import LayerCall, LayerRule
from metalearn.core.samples.operations_by_sample import (
    NotBySampleError,
    scalars_of,
    tensors_in,
)
from metalearn.core.samples.whole_batch import WholeLoss
from metalearn.core.tree import flatten, tree_map

__all__ = ["Seen", "each_alone", "seen_alone"]


def seen_alone(loss: WholeLoss, params: list[Tensor], batch: Any) -> tuple[Collected, list[Seen]]:
    """What a loss does to each sample, as a batch of one, by ``vmap``; and what it comes to."""
    seen: list[Seen] = []
    count = len(flatten(batch)[0][0])

    def mode(values: Sequence[Tensor], answer: Answer, level: int) -> LayerCalls:
        return _Recorder(values, answer, level, count, seen)

    return each_alone(loss, params, batch, mode), seen


def each_alone(
    loss: WholeLoss, params: list[Tensor], batch: Any, mode: Any = LayerCalls
) -> Collected:
    """What a loss of each sample comes to, in a mode."""
    return collect(loss, params, tree_map(lambda x: x.unsqueeze(1), batch), mode=mode)


class Seen(NamedTuple):
    """An operation on each sample alone."""

    function: Any
    scalars: list[Any]
    outputs: list[tuple[Tensor, bool]]
    """``[n, *one]``, and whether samples differ in it."""
    inputs: list[tuple[Tensor, bool]] | None
    """Of a layer's call."""


class _Recorder(LayerCalls):
    """Writes down what the loss of one sample does, for n samples."""

    def __init__(
        self,
        values: Sequence[Tensor],
        answer: Answer,
        level: int,
        count: int,
        seen: list[Seen],
    ) -> None:
        super().__init__(values, answer, level)
        self._seen, self._depth, self._count = seen, level, count
        self._inputs: list[tuple[Tensor, bool]] = []

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        found = function(*args, **kwargs)
        if not self.is_own_level():
            raise NotBySampleError("a transform inside of the loss")
        tensors = tensors_in(found)
        if tensors:
            self._note(function, args, kwargs, tensors, None)
        return found

    def answered(self, rule: LayerRule, function: Any, args: Any, kwargs: Any) -> Any:
        found = super().answered(rule, function, args, kwargs)
        if found is not None:
            self._note(function, args, kwargs, [found], self._inputs)
        return found

    def offer(self, name: str, call: LayerCall, views: Views) -> Any:
        self._inputs = [self._outside(x) for x in call.inputs]
        return super().offer(name, call, views)

    def _note(
        self, function: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor], inputs: Any
    ) -> None:
        outputs = [self._outside(x) for x in tensors]
        self._seen.append(Seen(function, scalars_of(args, kwargs), outputs, inputs))

    def _outside(self, tensor: Tensor) -> tuple[Tensor, bool]:
        """A copy, which nothing is written into."""
        found, differs = seen_outside(tensor, self._depth, self._count)
        return found.clone(), differs
