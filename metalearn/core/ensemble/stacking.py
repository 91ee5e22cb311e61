"""M parameter sets of one function, stacked: values and gradients of all members at once.

Members never mix: the sum of their losses is differentiated, which gives each its own gradient.
Axes: M members, B samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from metalearn.core.autodiff.backend import Eager
from metalearn.core.checks import check_samples
from metalearn.core.loss_checks import checked_to_reach, outside_inference_mode, scalar_loss
from metalearn.core.memory import keep_freed_memory
from metalearn.core.ops import DecomposedOperations, task_operations
from metalearn.core.tree import (
    check_floating,
    check_tensors,
    flatten,
    leaf_names,
    leaves,
    tree_map,
    unflatten,
)
from metalearn.core.vectorization import no_transform_active, vectorizing
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked
from metalearn.types import Params

__all__ = [
    "MemberEngine",
    "MemberGradients",
    "map_members",
    "member_gradients",
    "stack",
    "take_member",
    "unstack",
]

MemberEngine = Literal["batched", "vmap", "loop"]
"""``batched``: vmap carries values, member-batched operations stand in for convolutions and norms,
ordinary autograd differentiates outside. ``vmap``: vmap of torch.func's gradient, which works
inside further transforms. ``loop``: one member after another."""


class MemberGradients(NamedTuple):
    """What `member_gradients` gives."""

    grads: Params
    """Leaves ``[M, ...]``: of each member's own loss."""
    losses: Tensor
    """``[M]``."""


@checked
def stack(trees: Sequence[Any]) -> Any:
    """M trees of one shape as one tree, leaves ``[M, ...]``.

    Raises:
        SettingError: no tree, or trees that differ in names or shapes.
    """
    if not len(trees):
        raise SettingError("members", 0, "at least one is needed")
    for index, tree in enumerate(trees):
        check_tensors(tree, f"members[{index}]")
    first, spec = flatten(trees[0])
    for index, tree in enumerate(trees):
        values, found = flatten(tree)
        if found != spec:
            raise SettingError(f"members[{index}]", leaf_names(tree), f"{leaf_names(trees[0])}")
        for name, value, other in zip(leaf_names(tree), values, first):
            if value.shape != other.shape or value.dtype != other.dtype:
                raise SettingError(
                    f"members[{index}].{name}",
                    f"{value.dtype} {list(value.shape)}",
                    f"{other.dtype} {list(other.shape)} is needed, as in members[0]; networks that "
                    "differ are stacked apart",
                )
    return tree_map(lambda *values: torch.stack(values), *trees)


@checked
def unstack(tree: Any) -> list[Any]:
    """Inverse of `stack`: M trees of views."""
    check_tensors(tree, "tree")
    values, spec = flatten(tree)
    member_count(tree)
    return [unflatten(row, spec) for row in zip(*(value.unbind(0) for value in values))]


def take_member(tree: Any, index: int) -> Any:
    """Member ``index`` of a stacked tree, as views."""
    return tree_map(lambda value: value[index], tree)


@checked
def map_members(
    function: Callable[..., Any],
    *args: Any,
    in_dims: Any = 0,
    engine: MemberEngine = "batched",
) -> Any:
    """``function`` of every member: outputs ``[M, ...]``.

    Args:
        function: of one member.
        args: trees, leaves ``[M, ...]`` where ``in_dims`` has 0, shared by all where it has None.
        in_dims: 0 or None, for all arguments or one for each.
        engine: see `MemberEngine`. Inside a transform of torch.func ``batched`` is ``vmap``.

    Raises:
        SettingError: an unknown engine.
    """
    _check_engine(engine)

    def loop(args: Sequence[Any]) -> Any:
        rows = [function(*row) for row in _rows(args, in_dims)]
        check_tensors(rows, "function")
        return tree_map(lambda *values: torch.stack(values), *rows)

    if engine == "loop":
        return loop(args)
    batched = engine == "batched" and no_transform_active()
    operations = task_operations(args) if batched else nullcontext()
    with vectorizing("engine", engine, lambda: loop(_copies(args))), operations:
        return vmap(function, in_dims=in_dims)(*args)


@outside_inference_mode
@checked
def member_gradients(
    loss_fn: Callable[..., Tensor],
    params: Params,
    *args: Any,
    in_dims: int | Sequence[Any] | None = 0,
    engine: MemberEngine = "batched",
    chunk_size: int | None = None,
) -> MemberGradients:
    """Every member's loss and its gradient: g_m = ∇L(θ_m, a_m).

    Args:
        loss_fn: ``loss_fn(params, *args)``, a scalar, of one member.
        params: leaves ``[M, ...]``.
        args: of the loss: trees with leaves ``[M, ...]``, or shared by all members.
        in_dims: for each of ``args`` 0 (a member axis) or None (shared); one value is for all.
        engine: see `MemberEngine`.
        chunk_size: members at a time; None takes all.

    Raises:
        SettingError: M = 0 or leaves with different M; an unknown engine; a loss that is not a
            scalar or in which no parameter has a part.
    """
    _check_engine(engine)
    check_floating(params, "params")
    check_samples(args, "args")
    loss_fn = scalar_loss(loss_fn)
    dims = list(in_dims) if isinstance(in_dims, Sequence) else [in_dims] * len(args)
    count = member_count(params, *(a for a, dim in zip(args, dims) if dim is not None))
    if chunk_size is not None:
        check_whole("chunk_size", chunk_size, 1)
    size = chunk_size or count
    parts = []
    if leaves(params)[0].device.type == "cpu":
        keep_freed_memory()

    def loop(chunk: Sequence[Any]) -> MemberGradients:
        return _gradients(loss_fn, _copies(chunk), dims, "loop")

    for start in range(0, count, size):
        chunk = [params, *args]
        if size < count:
            chunk = [
                tree_map(lambda x, at=start: x[at : at + size], a) if dim is not None else a
                for a, dim in zip(chunk, [0, *dims])
            ]
        with vectorizing("engine", engine, partial(loop, chunk)):
            parts.append(_gradients(loss_fn, chunk, dims, engine))
    if len(parts) == 1:
        return parts[0]
    return MemberGradients(
        tree_map(lambda *g: torch.cat(g), *(p.grads for p in parts)),
        torch.cat([p.losses for p in parts]),
    )


def member_count(*trees: Any) -> int:
    """M of stacked trees; SettingError where they disagree."""
    for tree in trees:
        check_tensors(tree, "members")
    sizes = {int(leaf.shape[0]) if leaf.dim() else 0 for leaf in leaves(trees)}
    if len(sizes) != 1 or 0 in sizes:
        raise SettingError(
            "members", sorted(sizes), "every leaf needs the same leading axis of at least 1"
        )
    return sizes.pop()


def _gradients(
    loss_fn: Callable[..., Tensor], trees: Sequence[Any], dims: Sequence[Any], engine: MemberEngine
) -> MemberGradients:
    params, *args = trees
    if engine == "vmap":
        with DecomposedOperations():
            take = vmap(grad_and_value(checked_to_reach(loss_fn)), in_dims=(0, *dims))
            grads, losses = take(params, *args)
        return MemberGradients(grads, losses)
    values, spec = flatten(params)

    def losses_of(values: Any) -> Tensor:
        found: Tensor = map_members(
            loss_fn, unflatten(values, spec), *args, in_dims=(0, *dims), engine=engine
        )
        return found

    grads, losses = Eager().gradient(losses_of, values, differentiable=False)
    return MemberGradients(unflatten(grads, spec), losses)


def _check_engine(engine: MemberEngine) -> None:
    known = get_args(MemberEngine)
    if engine not in known:
        raise SettingError("engine", engine, f"one of {', '.join(known)} is needed")


def _copies(trees: Sequence[Any]) -> list[Any]:
    """Trees whose tensors, such as buffers, may be written to."""
    check_tensors(trees, "args")
    return [tree_map(lambda leaf: leaf.detach().clone(), tree) for tree in trees]


def _rows(args: Sequence[Any], in_dims: Any) -> list[list[Any]]:
    """The arguments of each member."""
    dims = list(in_dims) if isinstance(in_dims, Sequence) else [in_dims] * len(args)
    count = member_count(*(a for a, dim in zip(args, dims) if dim is not None))
    columns = [
        unstack(a) if dim is not None and leaves(a) else [a] * count for a, dim in zip(args, dims)
    ]
    return [list(row) for row in zip(*columns)]
