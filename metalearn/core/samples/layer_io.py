"""What the layers of a loss are given and send back, sample by sample, in one backward pass.

The loss runs inside ``vmap(grad(...))`` over samples; a layer's input and the gradient of its
output leave both by a hook, as tensors that show their sample axis, so that the gradients of its
parameters need not be taken by torch.
Axes: N samples, R other samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.core._functorch import (
    current_level,
    get_unwrapped,
    maybe_get_bdim,
    maybe_get_level,
    temporarily_pop_interpreter_stack,
)
from metalearn.core.autodiff.lean_gradient import is_differentiated, lean_gradient
from metalearn.core.loss_checks import refuse_unreached
from metalearn.core.ops.decomposed_norms import decomposed_norms
from metalearn.core.precision import norms_of, widened
from metalearn.core.samples.gradient_totals import (
    formed_total,
    gram_of_totals,
    squared_norms_of_total,
    sum_of_squares_of_total,
    weighted_total,
)
from metalearn.core.samples.layer_calls import Answer, LayerCalls
from metalearn.core.samples.layer_hooks import LayerHooks, Received, Shown, Views, Wanted
from metalearn.core.samples.layer_rules import LayerCall
from metalearn.core.samples.sample_gradients import FormedGradients, SampleGradients
from metalearn.core.tree import flatten

__all__ = ["Collected", "collect", "seen_outside"]


class Collected(NamedTuple):
    """Of one backward pass over N samples: losses, and what makes up each parameter's gradients."""

    losses: Tensor
    """``[N]``."""
    parts: list[list[SampleGradients]]
    """By parameter, one for each call, and one for all that was taken by ``vmap(grad)``."""
    calls: list[int]
    """By parameter, how many calls told of it."""
    rest: list[bool]
    """By parameter, whether a gradient came in another way than by such calls."""
    params: Sequence[Tensor]

    def norms(self) -> Tensor:
        """Norms ``[N]`` of gradients by all parameters, in float32 at least."""
        return norms_of(self.squared_norms())

    def squared_norms(self) -> list[Tensor]:
        """Their squares, of each parameter alone."""
        zeros = self.losses.new_zeros(self.losses.shape)
        return [
            squared_norms_of_total(parts) if parts else widened(zeros.to(p.dtype))
            for parts, p in zip(self.parts, self.params)
        ]

    def sums_of_squares(self) -> list[Tensor]:
        """Σ_i g_i², element by element, like the parameters."""
        return [
            sum_of_squares_of_total(parts).to(p.dtype) if parts else torch.zeros_like(p)
            for parts, p in zip(self.parts, self.params)
        ]

    def weighted_gradient(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Σ c_i·g_i for weights c ``[N]`` of each parameter, like the parameters."""
        return [
            weighted_total(parts, c).to(p.dtype) if parts else torch.zeros_like(p)
            for parts, c, p in zip(self.parts, weights, self.params)
        ]

    def gram(self, other: Collected) -> Tensor:
        """⟨g_r, h_i⟩ ``[R, N]`` with the gradients of other samples, in float32 at least."""
        total = widened(self.losses.new_zeros(len(self.losses), len(other.losses)))
        for parts, others in zip(self.parts, other.parts):
            if parts and others:
                total = total + gram_of_totals(parts, others)
        return total

    def gradients(self) -> list[Tensor]:
        """``[N, *shape]`` of each parameter; zeros take no memory."""
        count = len(self.losses)
        return [
            formed_total(parts).to(p.dtype) if parts else p.new_zeros(()).expand(count, *p.shape)
            for parts, p in zip(self.parts, self.params)
        ]


def collect(
    loss: Callable[[list[Tensor], Any], Tensor],
    params: Sequence[Tensor],
    batch: Any,
    *,
    wanted: Wanted = lambda index, call: True,
    received: Received = lambda index, gradients: gradients,
    mode: Callable[[Sequence[Tensor], Answer, int], LayerCalls] = LayerCalls,
) -> Collected:
    """Take ``loss(params, sample)`` and its gradients for all samples of a batch at once.

    Args:
        loss: of leaves like ``params`` and of one sample without a sample axis.
        params: the leaves.
        batch: a tree of tensors with a leading sample axis.
        wanted: see `Wanted`; what no call tells of is taken by ``vmap(grad)``.
        received: see `Received`; is called in the backward pass.
        mode: in which the loss is run.

    Raises:
        SettingError: no parameter has a part in the loss; a rule that gives something else.
    """
    leaves = flatten(batch)[0]
    values = [*params, params[0].new_zeros(())]
    keep = is_differentiated([*params, *leaves])
    hooks, rest = LayerHooks(params, len(leaves[0]), wanted, received), [False] * len(params)

    def of_one(sample: Any) -> tuple[list[Tensor], Tensor]:
        def inside(values: list[Tensor]) -> Tensor:
            level = current_level()
            answer = partial(_answered, hooks, values[-1], level)
            with decomposed_norms(keep), mode(values[:-1], answer, level):
                return loss(values[:-1], sample)

        found, value = lean_gradient(inside, values, keep_graph=keep)
        rest[:] = [gradient is not None for gradient in found[:-1]]
        return [gradient for gradient in found[:-1] if gradient is not None], value

    grads, losses = torch.func.vmap(of_one)(batch)
    parts, calls = hooks.parts, [len(found) for found in hooks.parts]
    if not any(rest) and not any(calls):
        refuse_unreached()
    for i, gradient in zip([i for i, reached in enumerate(rest) if reached], grads):
        parts[i].append(FormedGradients(gradient))
    return Collected(losses, parts, calls, rest, params)


def _answered(
    hooks: LayerHooks, origin: Tensor, level: int, name: str, call: LayerCall, views: Views
) -> Tensor | None:
    """The output of a call, whose parameters' gradients will be told; None to let it run.

    Its parameters are those outside of the gradient's level, to which no gradient goes.
    """
    told = hooks.told(call, views)
    if not any(told):
        return None
    output = hooks.run(call, told)
    if not output.requires_grad:
        output = output + origin  # so that a gradient comes
    elif output._is_view():
        output = output.clone()  # a view that is written into loses its hook

    def shown(x: Tensor) -> Shown:
        return partial(_with_axis, *_unwrapped(x, level), hooks.count)

    hooks.listen(name, call, told, output, list(map(shown, call.inputs)), shown, _outside)
    return output


@contextmanager
def _outside() -> Iterator[None]:
    """A block outside of ``vmap(grad)``."""
    with temporarily_pop_interpreter_stack(), temporarily_pop_interpreter_stack():
        yield


def seen_outside(tensor: Tensor, level: int, count: int) -> tuple[Tensor, bool]:
    """A tensor from inside ``vmap(grad)`` as ``[N, ...]``, and whether samples differ in it."""
    inside, axis = _unwrapped(tensor, level)
    with _outside():
        return _with_axis(inside.detach(), axis, count), axis is not None


def _unwrapped(tensor: Tensor, level: int) -> tuple[Tensor, int | None]:
    """A tensor from inside ``vmap(grad)``, ``level`` that of grad, and where its sample axis is."""
    if maybe_get_level(tensor) == level:
        tensor = get_unwrapped(tensor)
    if maybe_get_level(tensor) != level - 1:
        return tensor, None
    return get_unwrapped(tensor), maybe_get_bdim(tensor)


def _with_axis(tensor: Tensor, axis: int | None, count: int) -> Tensor:
    """The tensor with its sample axis in front."""
    return tensor.expand(count, *tensor.shape) if axis is None else tensor.movedim(axis, 0)
