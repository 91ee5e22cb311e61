"""Gradients inside torch.func's transforms that keep no graph where nobody asks for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import (
    TransformType,
    _unwrap_for_grad,
    _wrap_for_grad,
    get_unwrapped,
    is_functorch_wrapped_tensor,
)
from torch._functorch import eager_transforms
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

__all__ = ["broken_up", "is_differentiated", "lean_gradient"]

_NO_HOOKS = "transforms of torch.func do not support saved tensor hooks"


def lean_gradient(
    function: Callable[[list[Tensor]], Tensor], values: Sequence[Tensor], *, keep_graph: bool
) -> list[Tensor | None]:
    """As torch.func.grad, but None for values without effect, and without ``keep_graph`` no graph.

    torch.func.grad keeps the graph of the backward pass, which takes as much memory again. Like it,
    this refuses hooks on saved tensors, which would see tensors of one level at another.
    """
    no_hooks = torch.autograd.graph.disable_saved_tensors_hooks(_NO_HOOKS)
    with no_hooks, eager_transforms.grad_increment_nesting() as level, torch.enable_grad():
        inside = [eager_transforms._create_differentiable(_wrap_for_grad(v, level)) for v in values]
        loss = function(inside)
        if not loss.requires_grad:
            return [None] * len(inside)
        grads = torch.autograd.grad(loss, inside, create_graph=keep_graph, allow_unused=True)
        return [
            None if g is None else eager_transforms._undo_create_differentiable(g, level)
            for g in grads
        ]


def broken_up(
    function: Callable[[list[Tensor], Any], Tensor],
) -> Callable[[list[Tensor], Any], Tensor]:
    """The same function of values and one sample, to be differentiated outside of ``vmap``.

    A level of differentiation inside of vmap breaks up the operations that vmap would loop over
    otherwise (``gru_cell``, ``lstm_cell``), as ``vmap(grad)`` does.
    """

    def inside(values: list[Tensor], sample: Any) -> Tensor:
        with eager_transforms.grad_increment_nesting() as level:
            wrapped = [
                eager_transforms._create_differentiable(_wrap_for_grad(v, level)) for v in values
            ]
            value: Tensor = _unwrap_for_grad(function(wrapped, sample), level)
            return value

    return inside


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
