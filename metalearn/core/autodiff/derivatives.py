"""Jacobians and Hessians of functions of tensors and trees; the products come from `products`.

A function may take any arguments, by keyword too; those that are differentiated are trees of
floating-point tensors, such as the parameters of `metalearn.core.functionalize`. Everything is
written for one point and works inside a further ``vmap``: a Jacobian for every sample of a batch
is ``vmap(jacobian(f))(x)``.
Axes: ``[*y]`` a leaf of the outputs, ``[*x]`` a leaf of the inputs, P all input elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metalearn.core.autodiff.adjoint_tests import is_concrete, random_like
from metalearn.core.autodiff.derivative_modes import (
    Leaves,
    Mode,
    hessian_vector,
    with_safe_operations,
)
from metalearn.core.autodiff.jacobian_passes import JacobianPasses, for_each_output, prefers_forward
from metalearn.core.autodiff.products import Function, SecondMode, check_mode, ggn_vp, hvp, jvp, vjp
from metalearn.core.checks import call_given
from metalearn.core.tree import check_floating, dot, flatten, unflatten
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked

__all__ = ["Mode", "SecondMode", "ggn_vp", "hessian", "hvp", "jacobian", "jacobian_mode"]
__all__ += ["jvp", "vjp"]


@checked
def jacobian(
    f: Function,
    argnums: int | tuple[int, ...] = 0,
    *,
    mode: Literal["auto"] | Mode = "auto",
    chunk_size: int | None = None,
) -> Function:
    """The function that gives the Jacobian of ``f``: ∂y/∂x for outputs y and arguments x.

    Forward mode costs one pass for every input element, reverse mode one for every output element;
    the passes are batched. ``"auto"`` takes forward mode where there are more outputs than inputs
    (see `jacobian_mode`) and torch has it.

    Torch's forward mode is wrong for some operations, and so are its batched reverse passes (see
    `autodiff.adjoint_tests`). The Jacobian of the first call of the returned function with
    concrete tensors is therefore tested: its product uᵀ·J with a random u must be that of one
    reverse pass.
    Where ``"auto"`` took forward mode and they disagree, it takes reverse mode from then on, and
    where batched reverse passes disagree, they are taken one after another, each with a warning.
    Inside transforms of ``torch.func`` values cannot be read and nothing is tested: ``"auto"`` is
    forward mode there if a call outside has found it right, else reverse mode.

    Args:
        f: function of any arguments with a tensor, or a tree of tensors, as its value.
        argnums: which positional arguments are differentiated; each is a tensor or a tree.
        mode: ``"forward"``, refused where the test fails, ``"reverse"`` or ``"auto"``.
        chunk_size: passes that are taken at once; None takes all.

    Returns:
        A function of the arguments of ``f``. Its value is shaped like the outputs, with a tree
        like the argument (for a tuple ``argnums``, a tuple of such trees) in the place of each
        leaf; the leaves are ``[*y, *x]``. An input without effect has a Jacobian of zero.

    Raises:
        SettingError: an unknown mode, a chunk size below 1, an argument that is not there;
            arguments or outputs that are not floating-point tensors; a function that the mode
            cannot take, or takes wrongly.
    """
    _check_passes(mode, chunk_size)
    passes = JacobianPasses(mode, chunk_size)

    def taken(*args: Any, **kwargs: Any) -> Any:
        function, inputs, spec = _of_leaves(f, args, argnums, kwargs)
        return passes.jacobian(function, inputs, spec)

    return taken


@checked
def jacobian_mode(
    f: Function, args: Sequence[Any], argnums: int | tuple[int, ...] = 0, **kwargs: Any
) -> Mode:
    """Which mode ``jacobian(f, argnums)`` asks for first; evaluates ``f`` once.

    Forward where the outputs have more elements than the inputs, reverse otherwise: for equal
    numbers, reverse passes are the cheaper ones.
    """
    function, inputs, _ = _of_leaves(f, tuple(args), argnums, kwargs)
    with torch.no_grad():
        outputs = function(inputs)
    return "forward" if prefers_forward(inputs, outputs) else "reverse"


@checked
def hessian(
    f: Function,
    argnums: int | tuple[int, ...] = 0,
    *,
    as_matrix: bool = False,
    mode: Literal["auto"] | Mode = "auto",
    chunk_size: int | None = None,
) -> Function:
    """The function that gives the Hessian of ``f``, the Jacobian of its gradient.

    Args:
        f: usually a scalar function; for outputs of shape ``[*y]`` there is a Hessian for each.
        argnums: as in `jacobian`.
        as_matrix: one matrix over all elements of all leaves, in the order of
            `metalearn.core.tree.flatten`, in place of a tree of blocks.
        mode: how the gradient, itself taken in reverse mode, is differentiated in turn;
            ``"auto"`` is ``"reverse"``. Both are tested as by `jacobian`.
        chunk_size: rows (columns in forward mode) of the Hessian that are taken at once.

    Returns:
        A function of the arguments of ``f``. Its value is ``H[a][b]`` of shape ``[*y, *a, *b]``
        for leaves a and b of the argument, or ``[*y, P, P]``.

    Raises:
        SettingError: as `jacobian`.
    """
    _check_passes(mode, chunk_size)
    passes = JacobianPasses(mode, chunk_size)

    def taken(*args: Any, **kwargs: Any) -> Any:
        function, inputs, spec = _of_leaves(f, args, argnums, kwargs)
        if as_matrix:
            function, inputs, spec = _of_vector(function, inputs)
        with torch.no_grad():
            ys, out_spec = flatten(function(inputs))

        # vmap over outputs stands outside of both derivatives, because a derivative of a vmapped
        # one is wrong through fused norms (torch 2.14; torch.func.hessian is wrong there too)
        def of_one(*cotangents: Tensor) -> Any:
            along = lambda values: dot(flatten(function(values))[0], list(cotangents))  # noqa: E731
            slope = lambda values: unflatten(torch.func.grad(along)(values), spec)  # noqa: E731
            return passes.jacobian(slope, inputs, spec, partial(hessian_vector, along, inputs))

        if sum(y.numel() for y in ys) > 1 and is_concrete(inputs):
            of_one(*random_like(ys))  # tested there, as it cannot be inside vmap
        return for_each_output(of_one, ys, out_spec, None, passes.looped)

    return taken


def _of_leaves(
    f: Function, args: tuple[Any, ...], argnums: int | tuple[int, ...], kwargs: dict[str, Any]
) -> tuple[Callable[[Leaves], Any], Leaves, Any]:
    """``f`` as a function of the leaves of the chosen arguments, the leaves, and their tree."""
    chosen = _positions(argnums, len(args))
    for i in chosen:
        check_floating(args[i], f"args[{i}]")
    several = not isinstance(argnums, int)
    inputs, spec = flatten(tuple(args[i] for i in chosen) if several else args[chosen[0]])

    def function(values: Leaves) -> Any:
        tree, full = unflatten(values, spec), list(args)
        for i, part in zip(chosen, tree if several else (tree,)):
            full[i] = part
        outputs = call_given(partial(f, **kwargs), "f", *full)
        check_floating(outputs, "f(*args)")
        return outputs

    return with_safe_operations(function, inputs), inputs, spec


def _positions(argnums: Any, count: int) -> tuple[int, ...]:
    """``argnums`` as a tuple, refused where one is not there or stands twice."""
    chosen = tuple(argnums) if isinstance(argnums, tuple | list) else (argnums,)
    for i in chosen:
        if isinstance(i, bool) or not isinstance(i, int) or not -count <= i < count:
            raise SettingError("argnums", argnums, f"f got {count} positional arguments")
    if not chosen or len({i % count for i in chosen}) < len(chosen):
        raise SettingError("argnums", argnums, "at least one argument is needed, and none twice")
    return chosen


def _of_vector(
    function: Callable[[Leaves], Any], inputs: Leaves
) -> tuple[Callable[[Leaves], Any], Leaves, Any]:
    """The same as a function of one vector of all elements."""
    vector = torch.cat([x.reshape(-1) for x in inputs])

    def of_vector(values: Leaves) -> Any:
        parts = torch.split(values[0], [x.numel() for x in inputs])
        return function([part.view(x.shape) for part, x in zip(parts, inputs)])

    return of_vector, [vector], flatten(vector)[1]


def _check_passes(mode: str, chunk_size: int | None) -> None:
    check_mode("mode", mode, ("auto", *get_args(Mode)))
    if chunk_size is not None:
        check_whole("chunk_size", chunk_size, 1)
