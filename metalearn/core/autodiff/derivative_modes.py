"""Tangents J·v and cotangents Jᵀ·u of a function, in forward and in reverse mode.

Forward mode is missing for some operations and wrong for a few; see `autodiff.adjoint_tests`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from metalearn.core._functorch import transforms_active
from metalearn.core.autodiff.lean_gradient import Level, differentiating, is_differentiated
from metalearn.core.autodiff.torch_refusals import explaining_refusals
from metalearn.core.ops import DecomposedOperations, decomposed_operations_in_loss
from metalearn.core.tree import flatten, unflatten
from metalearn.errors import SettingError

__all__ = [
    "OTHER_MODE",
    "AnyMode",
    "Leaves",
    "LeavesFunction",
    "Mode",
    "hessian_vector",
    "is_missing",
    "jvp_forward",
    "jvp_reverse",
    "outputs_and_vjp",
    "sandwich_product",
    "vjp_function",
    "with_fallback",
    "with_safe_operations",
]

Mode = Literal["forward", "reverse"]
AnyMode = Literal["forward", "reverse", "auto"]

R = TypeVar("R")
Leaves = list[Tensor]
LeavesFunction = Callable[[Leaves], Any]
Cotangents = Sequence[Tensor] | Callable[[Any], Sequence[Tensor]]
MiddleFactor = Callable[[Any, Any], Sequence[Tensor]]

_UNTAKEN = "transforms of torch.func take no such operation; write it in other operations"
OTHER_MODE = {
    "forward": "reverse",
    "reverse": "forward",
    "forward_over_reverse": "reverse_over_reverse",
    "reverse_over_reverse": "forward_over_reverse",
}


def jvp_forward(
    function: LeavesFunction, inputs: Leaves, tangents: Leaves, mode: str = "forward"
) -> tuple[Any, Any]:
    """Outputs and J·v by forward mode, ``mode`` being the setting that asked for it.

    Raises:
        SettingError: an operation without forward mode.
    """
    with explaining_refusals("mode", mode, f"mode={OTHER_MODE[mode]!r} would do", "forward"):
        outputs, products = torch.func.jvp(function, (inputs,), (tangents,))[:2]
    return outputs, products


def with_fallback(run: Callable[[Any], R], mode: str, first: str) -> R:
    """``run(mode)``; for ``"auto"`` the ``first`` mode, or the other one where torch lacks that."""
    if mode != "auto":
        return run(mode)
    try:
        return run(first)
    except SettingError as error:
        if not is_missing(error):
            raise
        try:
            return run(OTHER_MODE[first])
        except SettingError as second:
            raise error if is_missing(second) else second from error.__cause__


def is_missing(error: SettingError) -> bool:
    """Whether it says that torch lacks a derivative of the mode."""
    return error.setting == "mode" and error.__cause__ is not None


def jvp_reverse(function: LeavesFunction, inputs: Leaves, tangents: Leaves) -> tuple[Any, Any]:
    """Outputs and J·v as the gradient of ⟨Jᵀ·u, v⟩ with respect to u, in which it is linear.

    Raises:
        SettingError: an operation that can be differentiated backwards but once, or not at all.
    """
    with _backwards("reverse"), differentiating() as level:
        inside = level.enter(inputs)
        ys, spec = flatten(function(inside))
        products = _pushed(level, ys, inside, tangents)
        return unflatten(level.leave(ys), spec), unflatten(level.leave(products), spec)


def outputs_and_vjp(
    function: LeavesFunction, inputs: Leaves, cotangents: Cotangents
) -> tuple[Any, Leaves]:
    """Outputs and Jᵀ·u; ``cotangents`` are u, or a function of the outputs that gives them.

    Raises:
        SettingError: an operation without reverse mode.
    """
    with _backwards("reverse"), differentiating() as level:
        inside = level.enter(inputs)
        outputs = function(inside)
        ys, spec = flatten(outputs)
        along = cotangents(outputs) if callable(cotangents) else cotangents
        found = level.pull(ys, inside, along)
        return unflatten(level.leave(ys), spec), level.leave(found)


def hessian_vector(
    function: LeavesFunction, inputs: Leaves, tangents: Leaves, mode: str = "reverse"
) -> Leaves:
    """∇²f·v of a scalar function: the cotangent of the inputs for v as that of the gradient.

    Raises:
        SettingError: an operation that can be differentiated backwards but once, or not at all.
    """
    with _backwards(mode), differentiating() as level:
        inside = level.enter(inputs)
        value = function(inside)
        slope = level.pull([value], inside, [torch.ones_like(value)])
        return level.leave(level.pull(slope, inside, tangents))


def sandwich_product(
    function: LeavesFunction, inputs: Leaves, tangents: Leaves, middle: MiddleFactor, mode: Mode
) -> Leaves:
    """Jᵀ·B(y, J·v) for the outputs y and ``middle`` B, which takes trees and gives leaves.

    Forward mode is not tested.

    Raises:
        SettingError: an operation without the derivatives of the mode.
    """
    products = None if mode == "reverse" else jvp_forward(function, inputs, tangents)[1]
    with _backwards("reverse"), differentiating() as level:
        inside = level.enter(inputs)
        outputs = function(inside)
        ys, spec = flatten(outputs)
        if products is None:
            products = unflatten(_pushed(level, ys, inside, tangents), spec)
        return level.leave(level.pull(ys, inside, middle(outputs, products)))


def _pushed(level: Level, ys: Leaves, inputs: Leaves, tangents: Leaves) -> Leaves:
    along = level.ones(ys)  # at 0 the backward pass of logcumsumexp has no derivative (torch 2.14)
    return level.pull(level.pull(ys, inputs, along), along, tangents)


def _backwards(mode: str) -> AbstractContextManager[None]:
    other = OTHER_MODE[mode]
    return explaining_refusals(
        "mode", mode, f"mode={other!r} would do if the operation has that", "reverse"
    )


def vjp_function(
    function: LeavesFunction, inputs: Leaves
) -> tuple[Any, Callable[[Sequence[Tensor]], Any]]:
    """Outputs, and the map of the cotangents of their leaves to those of the inputs.

    The map may be called often, and under vmap. For functions that take derivatives themselves
    `outputs_and_vjp` is the safer way.

    Raises:
        SettingError: an operation without reverse mode, here or from that map.
    """
    with _backwards("reverse"):
        outputs, pull = torch.func.vjp(function, inputs)[:2]
    spec = flatten(outputs)[1]

    def back(cotangents: Sequence[Tensor]) -> Any:
        with _backwards("reverse"):
            return pull(unflatten(cotangents, spec))[0]

    return outputs, back


def with_safe_operations(function: LeavesFunction, inputs: Leaves) -> LeavesFunction:
    """The function with decomposed operations where torch's own are not to be trusted.

    See `metalearn.core.ops.decomposed_operations`. Fused norms have no right third derivatives, no
    right nested tangents, and some fail under vmap (torch 2.14): they are replaced where a
    transform or a derivative stands around this one, and where the function takes its own.
    """
    nested = transforms_active() or is_differentiated(inputs)

    outermost = not transforms_active()

    def run(values: Leaves) -> Any:
        with DecomposedOperations(-1) if nested else decomposed_operations_in_loss():
            return function(values)

    def told(values: Leaves) -> Any:
        with explaining_refusals("f", "an operation", _UNTAKEN, "level"):
            return run(values)

    return told if outermost else run  # around a loss, its own entry point says what would do
