"""Products of Jacobians, Hessians and Gauss–Newton matrices with vectors, without the matrices.

Functions take trees of floating-point tensors, such as parameters, and further inputs by keyword.
Everything works inside a further ``vmap``: over vectors, over parameters, over samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metalearn.core.autodiff.adjoint_tests import check_forward
from metalearn.core.autodiff.derivative_modes import (
    AnyMode,
    Leaves,
    Mode,
    hessian_vector,
    jvp_forward,
    jvp_reverse,
    outputs_and_vjp,
    sandwich_product,
    with_fallback,
    with_safe_operations,
)
from metalearn.core.checks import call_given
from metalearn.core.loss_checks import check_scalar, refuse_unreached
from metalearn.core.tree import check_floating, flatten, leaf_names, unflatten
from metalearn.errors import SettingError
from metalearn.signatures import checked

__all__ = [
    "SecondMode",
    "check_mode",
    "check_scalar",
    "gauss_newton_product",
    "ggn_vp",
    "hessian_product",
    "hvp",
    "jvp",
    "leaves_like",
    "vjp",
]

SecondMode = Literal["forward_over_reverse", "reverse_over_reverse", "auto"]

Function = Callable[..., Any]


@checked
def hvp(
    f: Function,
    primals: Any,
    tangents: Any,
    *,
    mode: SecondMode = "auto",
    **kwargs: Any,
) -> Any:
    """Hessian–vector product ∇²f(x)·v of a scalar function, without the Hessian.

    Args:
        f: scalar function ``f(*primals, **kwargs)``, or ``f(primals, **kwargs)`` where ``primals``
            is not a tuple.
        primals: x, one tree of floating-point tensors, or a tuple of several, one per argument.
        tangents: v, shaped like ``primals``.
        mode: ``"reverse_over_reverse"`` pulls v back through the gradient;
            ``"forward_over_reverse"`` differentiates the gradient along v. Torch lacks or mistakes
            forward mode for some operations (see `autodiff.adjoint_tests`), so its product is
            tested by one of the other mode with a random vector, at every call outside of
            transforms; inside it is not. ``"auto"`` is ``"reverse_over_reverse"``, or the other
            one, tested in the same way, where torch cannot differentiate an operation backwards
            twice.
        **kwargs: further inputs of ``f``.

    Returns:
        A tree like ``primals``.

    Raises:
        SettingError: an unknown mode, a value that is not a scalar, tangents that do not fit; a
            function that the mode cannot take, or takes wrongly.
    """
    return hessian_product(partial(f, **kwargs), primals, tangents, mode)


def hessian_product(
    f: Function, primals: Any, tangents: Any, mode: SecondMode, *, tested: bool = False
) -> Any:
    """As `hvp`; ``tested`` says that forward mode need not be tested again."""
    check_mode("mode", mode, get_args(SecondMode))
    function, inputs, spec = _of_primals(f, primals)
    along = leaves_like(tangents, primals, "tangents")
    take = lambda mode: _hessian_on_leaves(function, inputs, along, mode, "f", tested)  # noqa: E731
    return unflatten(with_fallback(take, mode, "reverse_over_reverse"), spec)


@checked
def ggn_vp(
    outputs_fn: Function,
    output_loss: Callable[[Any], Tensor],
    params: Any,
    vector: Any,
    *,
    mode: AnyMode = "auto",
    **kwargs: Any,
) -> Any:
    """Generalised Gauss–Newton product Jᵀ ∇²L(z) J v, z = f(θ), J = ∂z/∂θ (Schraudolph, 2002).

    The normaliser is that of L: with a mean loss over N samples it is 1/N.

    Args:
        outputs_fn: the model's outputs z, a tensor or a tree, as ``outputs_fn(params, **kwargs)``.
        output_loss: L, a scalar function of the outputs.
        params: θ, a tree of floating-point tensors, or a tuple of them, one per argument.
        vector: v, shaped like ``params``.
        mode: of J·v, as in `jvp`.
        **kwargs: further inputs of ``outputs_fn``.

    Returns:
        A tree like ``params``.

    Raises:
        SettingError: a loss that is not a scalar, outputs in which no parameter has a part, a
            vector that does not fit; as `jvp`.
    """
    return gauss_newton_product(partial(outputs_fn, **kwargs), output_loss, params, vector, mode)


def gauss_newton_product(
    outputs_fn: Function,
    output_loss: Callable[[Any], Tensor],
    params: Any,
    vector: Any,
    mode: AnyMode,
    *,
    tested: bool = False,
) -> Any:
    """As `ggn_vp`; ``tested`` as for `hessian_product`."""
    check_mode("mode", mode, get_args(AnyMode))
    check_floating(params, "params")
    function, inputs, spec = _of_primals(outputs_fn, params)
    along = leaves_like(vector, params, "vector")

    def loss_curvature(outputs: Any, pushed: Any) -> Leaves:
        ys, shape = flatten(outputs)
        if not any(y.requires_grad for y in ys):
            refuse_unreached("outputs_fn")
        loss = lambda values: output_loss(unflatten(values, shape))  # noqa: E731
        return _hessian_on_leaves(
            loss, ys, flatten(pushed)[0], "reverse_over_reverse", "output_loss", True
        )

    def take(mode: Mode) -> Leaves:
        if mode == "forward" and not tested:
            check_forward(function, inputs, along, jvp_forward(function, inputs, along)[1])
        return sandwich_product(function, inputs, along, loss_curvature, mode)

    return unflatten(with_fallback(take, mode, "reverse"), spec)


@checked
def jvp(
    f: Function, primals: Any, tangents: Any, *, mode: AnyMode = "auto", **kwargs: Any
) -> tuple[Any, Any]:
    """Outputs and Jacobian–vector product J·v, J the Jacobian of ``f`` at ``primals``.

    ``mode="reverse"`` takes the gradient of ⟨Jᵀ·u, v⟩ with respect to u, for about twice the time
    of ``"forward"``, which torch lacks or mistakes for some operations (see
    `autodiff.adjoint_tests`) and which is therefore tested by a reverse pass at every call
    outside of transforms; inside it is not. ``"auto"`` is ``"reverse"``, or ``"forward"`` where
    torch cannot differentiate an operation backwards twice. The other arguments and errors are
    those of `hvp`; both results are shaped like the outputs.
    """
    check_mode("mode", mode, get_args(AnyMode))
    function, inputs, _ = _of_primals(partial(f, **kwargs), primals)
    along = leaves_like(tangents, primals, "tangents")

    def take(mode: Mode) -> tuple[Any, Any]:
        if mode == "reverse":
            return jvp_reverse(function, inputs, along)
        outputs, products = jvp_forward(function, inputs, along)
        check_forward(function, inputs, along, products)
        return outputs, products

    return with_fallback(take, mode, "reverse")


@checked
def vjp(f: Function, primals: Any, cotangents: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Outputs and vector–Jacobian product Jᵀ·u, shaped like ``primals``.

    ``cotangents`` u are shaped like the outputs; otherwise as `jvp`.
    """
    function, inputs, spec = _of_primals(partial(f, **kwargs), primals)
    outputs, product = outputs_and_vjp(
        function, inputs, lambda outputs: leaves_like(cotangents, outputs, "cotangents")
    )
    return outputs, unflatten(product, spec)


def check_mode(setting: str, mode: str, known: Sequence[str]) -> None:
    """Refuse a mode that is not known."""
    if mode not in known:
        raise SettingError(setting, mode, f"one of {', '.join(known)} is needed")


def _hessian_on_leaves(
    function: Callable[[Leaves], Any],
    inputs: Leaves,
    along: Leaves,
    mode: SecondMode,
    setting: str,
    tested: bool,
) -> Leaves:
    """∇²f·v on leaves."""
    scalar = lambda values: check_scalar(function(values), setting)  # noqa: E731
    if mode == "reverse_over_reverse":
        return hessian_vector(scalar, inputs, along, mode)
    gradient = torch.func.grad(scalar)
    product: Leaves = jvp_forward(gradient, inputs, along, mode)[1]
    if not tested:
        check_forward(gradient, inputs, along, product, mode)
    return product


def _of_primals(f: Function, primals: Any) -> tuple[Callable[[Leaves], Any], Leaves, Any]:
    """``f`` as a function of the leaves of ``primals``, the leaves, and their tree."""
    check_floating(primals, "primals")
    inputs, spec = flatten(primals)

    def function(values: Leaves) -> Any:
        tree = unflatten(values, spec)
        outputs = call_given(f, "f", *(tree if type(tree) is tuple else (tree,)))
        check_floating(outputs, "f(*primals)")
        return outputs

    return with_safe_operations(function, inputs), inputs, spec


def leaves_like(tree: Any, like: Any, setting: str) -> Leaves:
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
    return [value.to(model.dtype) for value, model in zip(given, wanted)]
