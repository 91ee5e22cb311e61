"""What is refused of losses: gradients that would be quietly zero, or those of a sum.

The checks are of types, shapes and graphs: they read no values, hold inside every transform of
``torch.func`` and wait for no device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor

from metalearn.core._functorch import get_unwrapped, is_batchedtensor
from metalearn.core.checks import call_given
from metalearn.core.tree import flatten, leaf_names, tree_map, unflatten
from metalearn.errors import SettingError

__all__ = [
    "UnreachedError",
    "check_reached",
    "check_scalar",
    "checked_to_reach",
    "outside_inference_mode",
    "refuse_unreached",
    "scalar_loss",
    "unused_parameters",
]

P = ParamSpec("P")
R = TypeVar("R")
_CONSTANT = "no parameter reached"


class UnreachedError(SettingError):
    """A loss in which no parameter has a part."""


def check_scalar(value: Any, setting: str) -> Tensor:
    """The value, refused where it is no scalar: one real floating-point number as a tensor."""
    if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
        needed = "a scalar is needed, a tensor without axes"
        if isinstance(value, Tensor) and not value.dim():
            needed += " and of a floating-point type"
        raise SettingError(setting, _shown(value), needed)
    return value


def scalar_loss(loss_fn: Callable[P, Any]) -> Callable[P, Tensor]:
    """The same loss, whose value is checked by `check_scalar`."""

    def checked(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        return check_scalar(call_given(loss_fn, "loss_fn", *args, **kwargs), "loss_fn")

    return checked


def check_reached(value: Tensor, setting: str = "loss_fn") -> Tensor:
    """The value of a loss, refused where no parameter has a part in it.

    For use where the parameters are differentiated: under a gradient of ``torch.func``, or under
    autograd with parameters that require gradients, also from inside a vmap. A single parameter
    without a part is none of its business: that has a gradient of zero.
    """
    inside = value
    while not inside.requires_grad and is_batchedtensor(inside):
        inside = get_unwrapped(inside)
    if not inside.requires_grad:
        refuse_unreached(setting)
    return value


def refuse_unreached(setting: str = "loss_fn") -> NoReturn:
    """Raise the error of `check_reached`."""
    raise UnreachedError(
        setting, _CONSTANT,
        "a loss is needed that is computed from the parameters it is given, so that it has a "
        "gradient: none that ignores or detaches them or is computed under torch.no_grad",
    )  # fmt: skip


def checked_to_reach(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """The same function to be differentiated, its value checked by `check_reached`."""

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        return check_reached(function(*args, **kwargs))

    return checked


def outside_inference_mode(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, which takes gradients, for callers under ``torch.inference_mode`` too.

    There autograd records nothing, so that every gradient would be zero. The function runs
    outside of it, with copies of the argument tensors that were made inside.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False):
            args, kwargs = tree_map(_ordinary, (args, kwargs))
            return function(*args, **kwargs)

    return run


@outside_inference_mode
def unused_parameters(loss_fn: Callable[..., Tensor], params: Any, *args: Any) -> list[str]:
    """Names of the parameters that have no part in ``loss_fn(params, *args)``, by autograd.

    To torch they have no gradient (None), which an optimiser skips, where a gradient of zero would
    have them decay.

    Raises:
        SettingError: a loss that is not a scalar or in which no parameter has a part.
    """
    values, spec = flatten(params)
    with torch.enable_grad():
        inside = [value.detach().requires_grad_() for value in values]
        loss = check_reached(scalar_loss(loss_fn)(unflatten(inside, spec), *args))
        grads = torch.autograd.grad(loss, inside, allow_unused=True)
    return [name for name, grad in zip(leaf_names(params), grads) if grad is None]


def _ordinary(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf


def _shown(value: Any) -> Any:
    """A value that is no scalar in few words."""
    if isinstance(value, Tensor):
        return tuple(value.shape) if value.dim() else value.dtype
    if isinstance(value, tuple | list | dict):
        return tree_map(_shown, value)
    return type(value).__name__
