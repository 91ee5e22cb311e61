"""What the layers of a loss are given and send back, sample by sample, in one backward pass.

The loss runs inside ``vmap(grad(...))`` over samples; a layer's input and the gradient of its
output leave both by a hook, as tensors that show their sample axis, so that the gradients of its
parameters need not be taken by torch.
Axes: N samples, R other samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
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
from metalearn.core.samples.layer_calls import LayerCalls, ParameterView
from metalearn.core.samples.layer_rules import LayerCall
from metalearn.core.samples.sample_gradients import FormedGradients, SampleGradients
from metalearn.core.tree import flatten
from metalearn.errors import SettingError

__all__ = ["Collected", "Received", "collect"]

Wanted = Callable[[int, LayerCall], bool]
"""Whether a call is to tell of a parameter, by its number."""
Received = Callable[[int, SampleGradients], SampleGradients]
"""What is kept of a parameter's gradients, by its number, in the place of inputs and gradients."""


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
) -> Collected:
    """Take ``loss(params, sample)`` and its gradients for all samples of a batch at once.

    Args:
        loss: of leaves like ``params`` and of one sample without a sample axis.
        params: the leaves.
        batch: a tree of tensors with a leading sample axis.
        wanted: see `Wanted`; what no call tells of is taken by ``vmap(grad)``.
        received: see `Received`; is called in the backward pass.

    Raises:
        SettingError: no parameter has a part in the loss; a rule that gives something else.
    """
    leaves = flatten(batch)[0]
    values = [*params, params[0].new_zeros(())]
    keep = is_differentiated([*params, *leaves])
    hooks = _Hooks(params, len(leaves[0]), wanted, received)

    def of_one(sample: Any) -> tuple[list[Tensor], Tensor]:
        def inside(values: list[Tensor]) -> Tensor:
            level = current_level()
            answer = partial(hooks.answer, values[-1], level)
            with decomposed_norms(keep), LayerCalls(values[:-1], answer, level):
                return loss(values[:-1], sample)

        found, value = lean_gradient(inside, values, keep_graph=keep)
        hooks.rest = [gradient is not None for gradient in found[:-1]]
        return [gradient for gradient in found[:-1] if gradient is not None], value

    grads, losses = torch.func.vmap(of_one)(batch)
    parts, calls = hooks.parts, [len(found) for found in hooks.parts]
    if not any(hooks.rest) and not any(calls):
        refuse_unreached()
    for i, gradient in zip([i for i, reached in enumerate(hooks.rest) if reached], grads):
        parts[i].append(FormedGradients(gradient))
    return Collected(losses, parts, calls, hooks.rest, params)


@dataclass
class _Hooks:
    """Answers calls, each with a hook on the gradient of its output."""

    params: Sequence[Tensor]
    count: int
    wanted: Wanted
    received: Received
    parts: list[list[SampleGradients]] = field(init=False)
    rest: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parts = [[] for _ in self.params]

    def answer(
        self,
        origin: Tensor,
        level: int,
        name: str,
        call: LayerCall,
        views: Sequence[ParameterView | None],
    ) -> Tensor | None:
        """The output of a call, whose parameters' gradients will be told; None to let it run.

        Its parameters are those outside of the gradient's level, to which no gradient goes.
        """
        told = [v if v is not None and self.wanted(v.number, call) else None for v in views]
        if not any(told):
            return None
        parameters = [
            given if view is None else view.of(self.params[view.number])
            for given, view in zip(call.parameters, told)
        ]
        output = call.run(*parameters)
        if not output.requires_grad:
            output = output + origin  # so that a gradient comes
        elif output._is_view():
            output = output.clone()  # a view that is written into loses its hook
        inputs = [(x, x._version, _unwrapped(x, level)) for x in call.inputs]

        def hook(dz: Tensor) -> None:
            pairs = [_unwrapped(dz, level)]
            while inputs:
                x, version, received = inputs.pop(0)
                _refuse_written(name, x, version)
                pairs.append(received)
            with temporarily_pop_interpreter_stack(), temporarily_pop_interpreter_stack():
                self._take(name, call, told, [_with_axis(*pair, self.count) for pair in pairs])

        output.register_hook(hook)  # type: ignore[no-untyped-call]
        return output

    def _take(
        self,
        name: str,
        call: LayerCall,
        told: Sequence[ParameterView | None],
        tensors: Sequence[Tensor],
    ) -> None:
        dz, *inputs = tensors
        # as autocast gave them to the layer
        inputs = [x.to(dz.dtype) if x.is_floating_point() else x for x in inputs]
        with _without_autocast(dz):
            for view, gradients_of in zip(told, call.gradients):
                if view is not None:
                    found = gradients_of(dz, *inputs)
                    _check_gradients(name, found, view.of(self.params[view.number]), self.count)
                    part = self.received(view.number, view.widened(found))
                    self.parts[view.number].append(part)


def _check_gradients(name: str, found: Any, parameter: Tensor, count: int) -> None:
    setting = f"layer rule of {name}"
    if not isinstance(found, SampleGradients):
        raise SettingError(setting, type(found).__name__, "SampleGradients of a kind are needed")
    got, wanted = (found.count, *found.shape), (count, *parameter.shape)
    if got != wanted:
        raise SettingError(setting, got, f"gradients {wanted} of a parameter are needed")


def _refuse_written(name: str, x: Tensor, version: int) -> None:
    if x._version != version:
        raise RuntimeError(
            f"the input of {name} was modified by an inplace operation after the call, which needs "
            "it for the gradients of single samples"
        )


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


def _without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    kind = like.device.type
    enabled = torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if enabled else nullcontext()
