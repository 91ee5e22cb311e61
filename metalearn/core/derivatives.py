"""Jacobians and Hessians of functions of tensors and trees; the products come from `products`.

A function may take any arguments, by keyword too; those that are differentiated are trees of
floating-point tensors, such as the parameters of `metalearn.core.functionalize`. Everything is
written for one point and works inside a further ``vmap``: a Jacobian for every sample of a batch
is ``vmap(jacobian(f))(x)``.
Axes: ``[*y]`` a leaf of the outputs, ``[*x]`` a leaf of the inputs, P all input elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metalearn.core.ops import PlainOperations
from metalearn.core.passes import by_columns, by_rows, each_output, pulled, vjp_of
from metalearn.core.products import SecondMode, check_mode, ggn_vp, hvp, jvp, vjp
from metalearn.core.tree import check_floating, flatten, unflatten
from metalearn.errors import SettingError, check_whole

__all__ = ["Mode", "SecondMode", "ggn_vp", "hessian", "hvp", "jacobian", "jacobian_mode"]
__all__ += ["jvp", "vjp"]

Mode = Literal["forward", "reverse"]

Function = Callable[..., Any]
Leaves = list[Tensor]


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
    (see `jacobian_mode`). Inside a ``vmap``, torch 2.14 refuses reverse mode for an ``f`` that
    takes gradients itself through fused batch or instance norms; forward mode and `hessian` work.

    Args:
        f: function of any arguments with a tensor, or a tree of tensors, as its value.
        argnums: which positional arguments are differentiated; each is a tensor or a tree.
        mode: ``"forward"``, ``"reverse"`` or ``"auto"``.
        chunk_size: passes that are taken at once; None takes all.

    Returns:
        A function of the arguments of ``f``. Its value is shaped like the outputs, with a tree
        like the argument (for a tuple ``argnums``, a tuple of such trees) in the place of each
        leaf; the leaves are ``[*y, *x]``. An input without effect has a Jacobian of zero.

    Raises:
        SettingError: an unknown mode, a chunk size below 1, an argument that is not there;
            arguments or outputs that are not floating-point tensors.
    """
    _check_passes(mode, chunk_size)

    def taken(*args: Any, **kwargs: Any) -> Any:
        function, inputs, spec = _of_leaves(f, args, argnums, kwargs)
        if mode != "forward":
            outputs, pull = vjp_of(function, inputs)
            if mode == "reverse" or not _prefers_forward(inputs, outputs):
                return by_rows(outputs, pull, spec, chunk_size)
        return by_columns(function, inputs, spec, chunk_size)

    return taken


def jacobian_mode(
    f: Function, args: Sequence[Any], argnums: int | tuple[int, ...] = 0, **kwargs: Any
) -> Mode:
    """Which mode ``jacobian(f, argnums)(*args, **kwargs)`` takes by itself; evaluates ``f`` once.

    Forward where the outputs have more elements than the inputs, reverse otherwise: for equal
    numbers, reverse passes are the cheaper ones.
    """
    function, inputs, _ = _of_leaves(f, tuple(args), argnums, kwargs)
    with torch.no_grad():
        outputs = function(inputs)
    return "forward" if _prefers_forward(inputs, outputs) else "reverse"


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
            ``"auto"`` is ``"reverse"``.
        chunk_size: rows (columns in forward mode) of the Hessian that are taken at once.

    Returns:
        A function of the arguments of ``f``. Its value is ``H[a][b]`` of shape ``[*y, *a, *b]``
        for leaves a and b of the argument, or ``[*y, P, P]``.

    Raises:
        SettingError: as `jacobian`.
    """
    _check_passes(mode, chunk_size)

    def taken(*args: Any, **kwargs: Any) -> Any:
        function, inputs, spec = _of_leaves(f, args, argnums, kwargs)
        if as_matrix:
            function, inputs, spec = _of_vector(function, inputs)
        with torch.no_grad():
            ys, out_spec = flatten(function(inputs))

        # vmap over outputs stands outside of both derivatives, because a derivative of a vmapped
        # one is wrong through fused norms (torch 2.14; torch.func.hessian is wrong there too)
        def of_one(*cotangents: Tensor) -> Any:
            slopes = pulled(function, cotangents)

            def gradient(values: Leaves) -> Any:
                return unflatten(slopes(values), spec)

            if mode == "forward":
                return by_columns(gradient, inputs, spec, chunk_size)
            bent = lambda tangents: pulled(gradient, tangents)(inputs)  # noqa: E731
            return by_rows(unflatten(inputs, spec), bent, spec, chunk_size)

        return each_output(of_one, ys, out_spec, None)

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
        with PlainOperations():
            outputs = f(*full, **kwargs)
        check_floating(outputs, "f(*args)")
        return outputs

    return function, inputs, spec


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


def _prefers_forward(inputs: Any, outputs: Any) -> bool:
    counts = [sum(math.prod(x.shape) for x in flatten(tree)[0]) for tree in (inputs, outputs)]
    return bool(counts[0] < counts[1])


def _check_passes(mode: str, chunk_size: int | None) -> None:
    check_mode("mode", mode, ("auto", *get_args(Mode)))
    if chunk_size is not None:
        check_whole("chunk_size", chunk_size, 1)
