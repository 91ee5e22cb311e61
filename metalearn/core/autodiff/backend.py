"""How gradients are taken: by torch.func inside a task axis, or by ordinary autograd outside it.

The methods of `meta.methods` are written once, in terms of these two operations. A value
is a scalar for one task, or ``[T]`` for T tasks whose inputs have a leading task axis; then the sum
over tasks is differentiated, which gives each task its own gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from metalearn.core.loss_checks import checked_to_reach, refuse_unreached
from metalearn.core.ops.unread import Unread, recording_unread

__all__ = ["Backend", "Eager", "Functional", "Pull", "Values"]

Values = list[Tensor]
Pull = Callable[[Sequence[Tensor]], Values]
"""Cotangents of outputs to cotangents of inputs; may be called more than once."""


class Backend(Protocol):
    """The two operations."""

    def gradient(
        self,
        function: Callable[[Any], Tensor],
        inputs: Values,
        *,
        differentiable: bool,
        unread: bool = False,
    ) -> tuple[Values, Tensor]:
        """Gradients of ``function(inputs)``, and its value, detached.

        ``differentiable`` says whether the gradients will be differentiated in turn. Inputs that
        the function does not use have gradients of zero. With ``unread`` their values may be
        anything, as nothing that is nonlinear in them follows, and the value of that is not read.

        Raises:
            SettingError: the function uses none of its inputs.
        """
        ...

    def pull(self, function: Callable[[Values], Values], inputs: Values) -> Pull:
        """The product of the transposed Jacobian of ``function`` at ``inputs`` with cotangents."""
        ...

    def pull_many(self, function: Callable[[Values], Values], inputs: Values) -> Pull:
        """The same with R cotangents of each output, ``[R, ...]``; R of each input come back."""
        ...

    def value_and_pull(
        self, function: Callable[[Values], Values], inputs: Values
    ) -> tuple[Values, Pull]:
        """Outputs of ``function``, detached, and its `pull`."""
        ...


class Functional:
    """By torch.func, for use inside vmap, inside another transform, or alone."""

    def gradient(
        self,
        function: Callable[[Any], Tensor],
        inputs: Values,
        *,
        differentiable: bool,
        unread: bool = False,
    ) -> tuple[Values, Tensor]:
        """See `Backend`."""
        function = checked_to_reach(function) if inputs else function
        grads, value = torch.func.grad_and_value(function)(list(inputs))
        return grads, value

    def pull(self, function: Callable[[Values], Values], inputs: Values) -> Pull:
        """See `Backend`."""

        def apply(cotangents: Sequence[Tensor]) -> Values:
            # the gradient of a product, because torch.func.vjp's own function fails under vmap
            # where ``function`` takes gradients itself (torch 2.14)
            def along(inputs: Values) -> Tensor:
                pairs = zip(function(inputs), cotangents)
                return torch.stack([(y * c).sum() for y, c in pairs]).sum()

            grads: Values = torch.func.grad(along)(list(inputs))
            return grads

        return apply

    def pull_many(self, function: Callable[[Values], Values], inputs: Values) -> Pull:
        """See `Backend`."""
        many: Pull = torch.vmap(self.pull(function, inputs))
        return many

    def value_and_pull(
        self, function: Callable[[Values], Values], inputs: Values
    ) -> tuple[Values, Pull]:
        """See `Backend`."""
        return function(list(inputs)), self.pull(function, inputs)


class Eager:
    """By ordinary autograd, for tensors that no transform of torch.func wraps."""

    def __repr__(self) -> str:
        return "Eager()"

    def gradient(
        self,
        function: Callable[[Any], Tensor],
        inputs: Values,
        *,
        differentiable: bool,
        unread: bool = False,
    ) -> tuple[Values, Tensor]:
        """See `Backend`."""
        if not inputs:
            return [], function(inputs).detach()
        with torch.enable_grad():
            if not differentiable:
                inputs = [v.detach() for v in inputs]
            inputs = [v if v.requires_grad else v.detach().requires_grad_() for v in inputs]
            with recording_unread() if unread else nullcontext(Unread()) as record:
                value = function(inputs)
            ones = [torch.ones_like(value)]
            with record.taking():
                found = _found([value], ones, inputs, create_graph=differentiable)
        if all(grad is None for grad in found):
            refuse_unreached()
        return _filled(found, inputs), value.detach()

    def pull(self, function: Callable[[Values], Values], inputs: Values) -> Pull:
        """See `Backend`."""
        return self.value_and_pull(function, inputs)[1]

    def pull_many(self, function: Callable[[Values], Values], inputs: Values) -> Pull:
        """See `Backend`."""
        outputs, inputs = _recorded(function, inputs)

        def one(cotangents: Sequence[Tensor]) -> Values:
            found = _found(outputs, cotangents, inputs, create_graph=False, retain_graph=True)
            return [torch.zeros_like(v) if g is None else g for v, g in zip(inputs, found)]

        # not is_grads_batched of autograd.grad, whose vmap of before torch.func goes row by row
        # through matrix products and most backward passes
        pull: Pull = torch.vmap(one)
        return pull

    def value_and_pull(
        self, function: Callable[[Values], Values], inputs: Values
    ) -> tuple[Values, Pull]:
        """See `Backend`."""
        outputs, inputs = _recorded(function, inputs)

        def pull(cotangents: Sequence[Tensor]) -> Values:
            found = _found(outputs, cotangents, inputs, create_graph=False, retain_graph=True)
            return _filled(found, inputs)

        return [y.detach() for y in outputs], pull


def _recorded(function: Callable[[Values], Values], inputs: Values) -> tuple[Values, Values]:
    """Outputs with their graph, and the inputs that it goes back to."""
    with torch.enable_grad():
        inputs = [v.detach().requires_grad_() for v in inputs]
        return function(inputs), inputs


def _found(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    inputs: Values,
    *,
    create_graph: bool,
    retain_graph: bool = False,
) -> Sequence[Tensor | None]:
    """Gradients by autograd, None where an input has no part in the outputs."""
    reached = [(y, c) for y, c in zip(outputs, cotangents) if y.requires_grad]
    if not reached or not inputs:
        return [None] * len(inputs)
    found: Sequence[Tensor | None] = torch.autograd.grad(
        [y for y, _ in reached],
        inputs,
        [c for _, c in reached],
        create_graph=create_graph,
        retain_graph=retain_graph or create_graph,
        allow_unused=True,
    )
    return found


def _filled(grads: Sequence[Tensor | None], like: Values) -> Values:
    """Zero in the place of None."""
    return [torch.zeros_like(v) if g is None else g for g, v in zip(grads, like)]
