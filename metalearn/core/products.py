"""Products of Jacobians, Hessians and Gauss–Newton matrices with vectors, without the matrices.

Functions take trees of floating-point tensors, such as parameters, and further inputs by keyword.
Everything works inside a further ``vmap``: over vectors, over parameters, over samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metalearn.core.checks import check_scalar
from metalearn.core.ops import PlainOperations
from metalearn.core.tree import check_floating, flatten, leaf_names, unflatten
from metalearn.errors import SettingError

__all__ = ["SecondMode", "check_mode", "check_scalar", "ggn_vp", "hvp", "inner", "jvp", "vjp"]

SecondMode = Literal["forward_over_reverse", "reverse_over_reverse"]

Function = Callable[..., Any]
Leaves = list[Tensor]


def hvp(
    f: Function,
    primals: Any,
    tangents: Any,
    *,
    mode: SecondMode = "forward_over_reverse",
    **kwargs: Any,
) -> Any:
    """Hessian–vector product ∇²f(x)·v of a scalar function, without the Hessian.

    Args:
        f: scalar function ``f(*primals, **kwargs)``, or ``f(primals, **kwargs)`` where ``primals``
            is not a tuple.
        primals: x, one tree of floating-point tensors, or a tuple of several, one per argument.
        tangents: v, shaped like ``primals``.
        mode: ``"forward_over_reverse"`` differentiates the gradient along v;
            ``"reverse_over_reverse"`` takes the gradient of ⟨∇f, v⟩, for functions that have no
            forward mode.
        **kwargs: further inputs of ``f``.

    Returns:
        A tree like ``primals``.

    Raises:
        SettingError: an unknown mode, a value that is not a scalar, tangents that do not fit.
    """
    check_mode("mode", mode, get_args(SecondMode))
    function, inputs, spec = _of_primals(f, primals, kwargs)
    along = _matching(tangents, primals, "tangents")

    def scalar(values: Leaves) -> Tensor:
        return check_scalar(function(values), "f")

    gradient = torch.func.grad(scalar)
    if mode == "forward_over_reverse":
        return unflatten(torch.func.jvp(gradient, (inputs,), (along,))[1], spec)
    product = torch.func.grad(lambda values: inner(gradient(values), along))
    return unflatten(product(inputs), spec)


def ggn_vp(
    outputs_fn: Function,
    output_loss: Callable[[Any], Tensor],
    params: Any,
    vector: Any,
    **kwargs: Any,
) -> Any:
    """Generalised Gauss–Newton product Jᵀ ∇²L(z) J v, z = f(θ), J = ∂z/∂θ (Schraudolph, 2002).

    The normaliser is that of L: with a mean loss over N samples it is 1/N.

    Args:
        outputs_fn: the model's outputs z, a tensor or a tree, as ``outputs_fn(params, **kwargs)``.
        output_loss: L, a scalar function of the outputs.
        params: θ, a tree of floating-point tensors, or a tuple of them, one per argument.
        vector: v, shaped like ``params``.
        **kwargs: further inputs of ``outputs_fn``.

    Returns:
        A tree like ``params``.

    Raises:
        SettingError: a loss that is not a scalar, a vector that does not fit.
    """
    check_floating(params, "params")
    _matching(vector, params, "vector")
    outputs, along = jvp(outputs_fn, params, vector, **kwargs)
    values, spec = flatten(outputs)

    def loss(values: Leaves) -> Tensor:
        return check_scalar(output_loss(unflatten(values, spec)), "output_loss")

    # in reverse mode, because mse_loss and huber_loss refuse forward over reverse (torch 2.14)
    curved = hvp(loss, values, flatten(along)[0], mode="reverse_over_reverse")
    return vjp(outputs_fn, params, unflatten(curved, spec), **kwargs)[1]


def jvp(f: Function, primals: Any, tangents: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Outputs and Jacobian–vector product J·v, J the Jacobian of ``f`` at ``primals``.

    Arguments and errors are those of `hvp`; both results are shaped like the outputs.
    """
    function, inputs, _ = _of_primals(f, primals, kwargs)
    along = _matching(tangents, primals, "tangents")
    outputs, products = torch.func.jvp(function, (inputs,), (along,))[:2]
    return outputs, products


def vjp(f: Function, primals: Any, cotangents: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Outputs and vector–Jacobian product Jᵀ·u, shaped like ``primals``.

    ``cotangents`` u are shaped like the outputs; otherwise as `jvp`.
    """
    function, inputs, spec = _of_primals(f, primals, kwargs)

    # the gradient of ⟨y, u⟩, because under vmap torch.func.vjp's own function fails where f takes
    # gradients itself (torch 2.14)
    def along(values: Leaves) -> tuple[Tensor, Any]:
        outputs = function(values)
        return inner(flatten(outputs)[0], _matching(cotangents, outputs, "cotangents")), outputs

    product, outputs = torch.func.grad(along, has_aux=True)(inputs)
    return outputs, unflatten(product, spec)


def inner(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """⟨a, b⟩ over all elements of all leaves."""
    return torch.stack([(a * b).sum() for a, b in zip(one, other)]).sum()


def check_mode(setting: str, mode: str, known: Sequence[str]) -> None:
    """Refuse a mode that is not known."""
    if mode not in known:
        raise SettingError(setting, mode, f"one of {', '.join(known)} is needed")


def _of_primals(
    f: Function, primals: Any, kwargs: dict[str, Any]
) -> tuple[Callable[[Leaves], Any], Leaves, Any]:
    """``f`` as a function of the leaves of ``primals``, the leaves, and their tree."""
    check_floating(primals, "primals")
    inputs, spec = flatten(primals)

    def function(values: Leaves) -> Any:
        tree = unflatten(values, spec)
        with PlainOperations():
            outputs = f(*tree, **kwargs) if type(tree) is tuple else f(tree, **kwargs)
        check_floating(outputs, "f(*primals)")
        return outputs

    return function, inputs, spec


def _matching(tree: Any, like: Any, setting: str) -> Leaves:
    """Leaves of ``tree``, which must have the structure and shapes of ``like``."""
    wanted, spec = flatten(like)
    try:
        given = spec.flatten_up_to(tree)  # keys of dicts may stand in another order
    except ValueError:
        needed = f"a tree with {leaf_names(like)} is needed"
        raise SettingError(setting, leaf_names(tree), needed) from None
    for name, value, model in zip(leaf_names(like), given, wanted):
        where = f"{setting}[{name}]" if name else setting
        if not isinstance(value, Tensor) or value.shape != model.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise SettingError(where, got, f"the shape {tuple(model.shape)} is needed")
        check_floating(value, where)
    return given
