"""Whether a loss can be run on a whole batch in the place of a ``vmap``, found by trying.

A few samples go both ways. Every tensor that the loss makes of them at once has to consist of those
that it makes of each alone, by which it is known where its samples are; so have losses and
gradients. What is the same for all samples, operations that mix them and those under transforms of
the loss's own are seen there, whatever the loss comes to.
Axes: N samples, n samples of the trial, ``[*one]`` the axes of a tensor where the batch is one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.core.chunking import sample_count
from metalearn.core.samples.gradient_totals import formed_total
from metalearn.core.samples.layer_calls import LayerCalls
from metalearn.core.samples.layer_hooks import LayerHooks, Views
from metalearn.core.samples.layer_io import Collected
from metalearn.core.samples.layer_rules import LayerCall, LayerRule, telling_samples
from metalearn.core.samples.layouts import FRONT, Layout, layouts_of, same_values, spread
from metalearn.core.samples.operations_by_sample import (
    NotBySampleError,
    one_by_one_of,
    scalars_of,
    tensor_arguments,
    tensors_in,
)
from metalearn.core.samples.samples_alone import Seen, each_alone, seen_alone
from metalearn.core.samples.whole_batch import (
    BatchCalls,
    Output,
    Step,
    WholeLoss,
    collect_whole,
    run_whole,
)
from metalearn.core.tree import flatten, tree_map

__all__ = ["can_be_tried", "tried_steps"]

_SAMPLES = 3  # of the first trial; a second one of two follows


def can_be_tried(batch: Any) -> bool:
    """Whether there are several samples, none of which could be taken for another."""
    return sample_count(batch) > 1 and all(map(_are_distinct, _picked(batch)))


def tried_steps(loss: WholeLoss, params: list[Tensor], batch: Any) -> tuple[Step, ...] | None:
    """What a loss does to a whole batch, or None where that is not what it does to each sample.

    Args:
        loss: of leaves and a batch.
        params: the leaves, all of which are used by calls with rules alone.
        batch: one that `can_be_tried`.
    """
    first, second = _picked(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations that are tried in vain
        try:
            exact, seen = seen_alone(loss, params, first)
            found, mode = run_whole(loss, params, first, _trial(first, seen))
            if len(mode.steps) != len(seen) or not _agree(found, exact):
                return None
            steps = tuple(mode.steps)
            again = collect_whole(loss, params, second, steps)
            return steps if _agree(again, each_alone(loss, params, second)) else None
        except Exception:  # whatever it is, the way by vmap will tell
            return None


def _trial(batch: Any, seen: Sequence[Seen]) -> Callable[..., BatchCalls]:
    def mode(values: Sequence[Tensor], hooks: LayerHooks, origin: Tensor) -> BatchCalls:
        return _Trial(values, hooks, origin, flatten(batch)[0], seen)

    return mode


class _Trial(BatchCalls):
    """Finds out what a loss of a whole batch does to samples; see `BatchCalls`."""

    def __init__(
        self,
        values: Sequence[Tensor],
        hooks: LayerHooks,
        origin: Tensor,
        batch: Sequence[Tensor],
        seen: Sequence[Seen],
    ) -> None:
        super().__init__(values, hooks, origin, ())
        self._seen = seen
        self._layouts: dict[int, tuple[Tensor, list[Layout | None]]] = {}
        for leaf in batch:
            self._layouts[id(leaf)] = leaf, [FRONT]

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        if not self.is_own_level():
            raise NotBySampleError("a transform inside of the loss")
        given = [self._layouts_of(x) for x in tensor_arguments(args, kwargs)]
        try:
            found = self.plainly(function, args, kwargs)
        except (RuntimeError, ValueError, IndexError):
            found = None
        else:
            if not tensors_in(found):
                return found
        exact = self._next(function)
        layouts = None if found is None else self._found(found, exact)
        by_sample = layouts is None
        if by_sample:
            if function.__name__.rstrip("_") != function.__name__:
                raise NotBySampleError(str(function))  # it may have written
            found = one_by_one_of(function, args, kwargs, list(map(_only, given)), self.hooks.count)
            layouts = self._found(found, exact)
        if layouts is None or exact.inputs is not None:
            raise NotBySampleError(str(function))
        self._note(exact, args, kwargs, tensors_in(found), layouts, by_sample=by_sample)
        return found

    def answered(self, rule: LayerRule, function: Any, args: Any, kwargs: Any) -> Any:
        self._now = function, args, kwargs
        tensors = tensor_arguments(args, kwargs)
        with telling_samples({id(x) for x in tensors if self._layouts_of(x) != [None]}):
            return LayerCalls.answered(self, rule, function, args, kwargs)

    def offer(self, name: str, call: LayerCall, views: Views) -> Tensor | None:
        function, args, kwargs = self._now
        exact = self._next(function)
        if exact.inputs is None or len(exact.inputs) != len(call.inputs):
            raise NotBySampleError(name)
        told = self.hooks.told(call, views)
        inputs = [_only(self._match(x, e)) for x, e in zip(call.inputs, exact.inputs)]
        output = self.hooks.run(call, told)
        layout = _only(self._match(output, exact.outputs[0]))
        is_spread = layout is None
        if is_spread:
            output, layout = spread(output, self.hooks.count)
        answer = self.listened(name, call, told, output, layout, inputs)
        self._note(exact, args, kwargs, [answer], [[layout]], inputs=inputs, is_spread=is_spread)
        return answer

    def _next(self, function: Any) -> Seen:
        """What the operation did to each sample."""
        place = len(self.steps)
        if place >= len(self._seen) or self._seen[place].function != function:
            raise NotBySampleError(str(function))
        return self._seen[place]

    def _layouts_of(self, tensor: Tensor) -> list[Layout | None]:
        known = self._layouts.get(id(tensor))
        return [None] if known is None else known[1]

    def _found(self, value: Any, exact: Seen) -> list[list[Layout | None]] | None:
        tensors = tensors_in(value)
        if len(tensors) != len(exact.outputs):
            return None
        found = [self._match(x, e) for x, e in zip(tensors, exact.outputs)]
        return found if all(found) else None

    def _match(self, tensor: Tensor, exact: tuple[Tensor, bool]) -> list[Layout | None]:
        """All ways in which a tensor may be made of those of single samples; none else."""
        each, differs = exact
        if not differs and same_values(tensor.detach(), each[0]):
            return [None]
        return list(layouts_of(tensor.detach(), each))

    def _note(
        self,
        exact: Seen,
        args: Any,
        kwargs: Any,
        tensors: Sequence[Tensor],
        layouts: Sequence[list[Layout | None]],
        *,
        inputs: Sequence[Layout | None] | None = None,
        **how: bool,
    ) -> None:
        given = [self._layouts_of(x) for x in tensor_arguments(args, kwargs)]
        scalars = zip(exact.scalars, scalars_of(args, kwargs))
        constants = [
            (i, b) for i, (a, b) in enumerate(scalars) if type(a) is type(b) and a == b is not None
        ]
        outputs = [
            Output(found[0], tuple(each.shape[1:]))
            for found, (each, _) in zip(layouts, exact.outputs)
        ]
        step = Step(
            exact.function, tuple(constants), tuple(outputs),
            tuple(found[0] for found in given),
            inputs=None if inputs is None else tuple(inputs), **how,
        )  # fmt: skip
        self.steps.append(step)
        for tensor, found in zip(tensors, layouts):
            self._layouts[id(tensor)] = tensor, found


def _only(found: Sequence[Layout | None]) -> Layout | None:
    """The one way in which a tensor may be made of samples."""
    if len(found) != 1:
        raise NotBySampleError("it cannot be said where samples are")
    return found[0]


def _picked(batch: Any) -> tuple[Any, Any]:
    """Some samples from the front, and two from the end in another order."""
    return tree_map(lambda x: x[:_SAMPLES], batch), tree_map(lambda x: x[-2:].flip(0), batch)


def _are_distinct(batch: Any) -> bool:
    leaves = flatten(batch)[0]
    count = len(leaves[0])
    pairs = [(i, j) for i in range(count) for j in range(i)]
    return all(any(not torch.equal(x[i], x[j]) for x in leaves) for i, j in pairs)


def _agree(found: Collected, exact: Collected) -> bool:
    """Whether losses and all gradients are the same up to rounding."""
    if not same_values(found.losses, exact.losses.detach()):
        return False
    pairs = [(_formed(a), _formed(b)) for a, b in zip(found.parts, exact.parts)]
    tops = [float(b.abs().max()) for _, b in pairs if b is not None and b.numel()]
    for a, b in pairs:
        if a is None or b is None:
            if a is not b:
                return False
        elif a.numel():
            size = float(b.abs().max()) + 1e-2 * max(tops)
            allowed = torch.finfo(b.dtype).eps ** 0.5 * size
            if not torch.isclose(a, b, rtol=0, atol=allowed, equal_nan=True).all():
                return False
    return True


def _formed(parts: Sequence[Any]) -> Tensor | None:
    return formed_total(parts).detach() if parts else None
