"""Levels of differentiation inside torch.func's transforms, and gradients that keep no graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.core._functorch import (
    TransformType,
    create_differentiable,
    get_unwrapped,
    grad_increment_nesting,
    is_functorch_wrapped_tensor,
    retrieve_all_functorch_interpreters,
    undo_create_differentiable,
    wrap_for_grad,
)

__all__ = ["Level", "differentiating", "is_differentiated", "lean_gradient"]


class Level(NamedTuple):
    """One level of differentiation, in which autograd is used as outside of torch.func."""

    number: int

    def enter(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Values to differentiate by."""
        return [create_differentiable(wrap_for_grad(v, self.number)) for v in values]

    def leave(self, values: Sequence[Tensor]) -> list[Tensor]:
        """What was computed, outside of the level."""
        return [undo_create_differentiable(v, self.number) for v in values]

    def ones(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Ones to differentiate by, shaped like ``values``."""
        made = [torch.ones(v.shape, dtype=v.dtype, device=v.device) for v in values]
        return [create_differentiable(v) for v in made]  # made on this level

    def pull(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
    ) -> list[Tensor]:
        """The cotangents of inputs, with a graph; zero for those without a part in the outputs."""
        reached = [(y, u) for y, u in zip(outputs, cotangents) if y.requires_grad]
        found: Sequence[Tensor | None] = [None] * len(inputs)
        if reached:
            ys, us = zip(*reached)
            found = torch.autograd.grad(ys, inputs, us, create_graph=True, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs)]


@contextmanager
def differentiating() -> Iterator[Level]:
    """A new level: derivatives of derivatives are taken inside of one, as by plain autograd.

    torch.func.vjp leaves its level before cotangents are pulled back. Where the function takes
    gradients itself, second derivatives of fused norms then fail under vmap or leave a graph behind
    (torch 2.14).
    """
    with grad_increment_nesting() as number, torch.enable_grad():
        yield Level(number)


_NO_HOOKS = "transforms of torch.func do not support saved tensor hooks"


def lean_gradient(
    function: Callable[[list[Tensor]], Tensor], values: Sequence[Tensor], *, keep_graph: bool
) -> tuple[list[Tensor | None], Tensor]:
    """As torch.func.grad_and_value, but None for values without effect; a graph if it is wanted.

    torch.func.grad keeps the graph of the backward pass, which takes as much memory again. Like it,
    this refuses hooks on saved tensors, which would see tensors of one level at another.
    """
    no_hooks = torch.autograd.graph.disable_saved_tensors_hooks(_NO_HOOKS)
    with no_hooks, grad_increment_nesting() as level, torch.enable_grad():
        inside = [create_differentiable(wrap_for_grad(v, level)) for v in values]
        loss = function(inside)
        grads: Sequence[Tensor | None] = [None] * len(inside)
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, inside, create_graph=keep_graph, allow_unused=True)
        found = [None if g is None else undo_create_differentiable(g, level) for g in grads]
        return found, undo_create_differentiable(loss, level)


def is_differentiated(tensors: Sequence[Tensor]) -> bool:
    """Whether the result will be differentiated in turn, by torch.func or by autograd."""
    for interpreter in retrieve_all_functorch_interpreters():
        if interpreter.key() in (TransformType.Grad, TransformType.Jvp):
            return True
    for tensor in tensors:
        while is_functorch_wrapped_tensor(tensor):
            tensor = get_unwrapped(tensor)
        if tensor.requires_grad and torch.is_grad_enabled():
            return True
    return False
