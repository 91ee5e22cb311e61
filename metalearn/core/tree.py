"""Arithmetic and names over parameter trees.

A tree is any nesting of dicts, lists, tuples and named tuples with tensors at its leaves.
Axes: P parameters (all elements of all leaves).
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metalearn.core.float64 import widest
from metalearn.errors import SettingError

__all__ = [
    "TreeSpec",
    "add_scaled",
    "check_floating",
    "check_like",
    "check_tensors",
    "distances",
    "dot",
    "flatten",
    "is_finite",
    "is_row",
    "leaf_names",
    "leaves",
    "match_names",
    "norm",
    "ravel",
    "row_of",
    "scale",
    "tree_map",
    "unflatten",
]

TreeSpec = pytree.TreeSpec


def tree_map(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply ``function`` to the leaves of one tree, or leaf by leaf to several of one shape.

    Where the shapes differ, it may have been applied to leaves before the place where they do.
    """
    if isinstance(tree, Tensor):
        return function(tree, *rest)
    # torch's pytree, which knows more kinds of tree, takes longer than an operation
    kind = type(tree)
    if kind is dict and all(type(o) is dict and o.keys() == tree.keys() for o in rest):
        return {
            key: tree_map(function, value, *(other[key] for other in rest))
            for key, value in tree.items()
        }
    if is_row(kind) and all(type(o) is kind and len(o) == len(tree) for o in rest):
        return row_of(kind, (tree_map(function, *values) for values in zip(tree, *rest)))
    return pytree.tree_map(function, tree, *rest)


def flatten(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Leaves in a fixed order, and the shape of the tree."""
    return pytree.tree_flatten(tree)


def unflatten(values: Sequence[Any], spec: TreeSpec) -> Any:
    """The tree of shape ``spec`` with ``values`` as its leaves; inverse of `flatten`."""
    return pytree.tree_unflatten(values, spec)


def leaves(tree: Any) -> list[Any]:
    """Leaves in the order of `flatten`."""
    found: list[Any] = []
    _gather(tree, found)
    return found


def leaf_names(tree: Any) -> list[str]:
    """Dotted names of the leaves: ``{"a": [x, y]}`` gives ``["a.0", "a.1"]``."""
    paths, _ = pytree.tree_flatten_with_path(tree)
    return [".".join(_key_name(key) for key in path) for path, _ in paths]


def match_names(tree: Any, patterns: str | Sequence[str] | None, setting: str) -> list[bool]:
    """Which leaves have a name that one of the shell-style ``patterns`` matches.

    ``*`` matches any characters, dots too: ``"blocks.*"`` takes everything below ``blocks``.

    Raises:
        SettingError: a pattern that matches no leaf; ``setting`` names it in the message.
    """
    if patterns is None:
        return [False] * len(leaves(tree))
    names = leaf_names(tree)
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in wanted:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            raise SettingError(setting, pattern, f"a pattern that matches a parameter of {shown}")
    return [any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted) for name in names]


def add_scaled(tree: Any, other: Any, factor: float | Tensor) -> Any:
    """``tree + factor · other``, leaf by leaf."""
    return tree_map(lambda a, b: a + factor * b, tree, other)


def scale(tree: Any, factor: float | Tensor) -> Any:
    """``factor · tree``, leaf by leaf."""
    return tree_map(lambda a: factor * a, tree)


def dot(tree: Any, other: Any) -> Tensor:
    """Σ over all P elements of ``tree · other``, a scalar."""
    products = tree_map(lambda a, b: (a * b).sum(), tree, other)
    return torch.stack(leaves(products)).sum()


def distances(actual: Any, expected: Any, *, floor: float) -> dict[str, float]:
    """Relative Euclidean distance of each leaf, by name.

    It is relative to the leaf's norm, or to ``floor`` times that of the whole tree where that is
    more, so that rounding around a gradient of zero is not taken for an error. It is 0 where the
    expected leaf is not finite, which no engine can be held to.
    """
    names, pairs = leaf_names(expected), list(zip(leaves(actual), leaves(expected)))
    sizes = [float(widest(b).norm()) for _, b in pairs]
    whole = math.sqrt(sum(size**2 for size in sizes if math.isfinite(size)))
    found = {}
    for name, size, (a, b) in zip(names, sizes, pairs):
        gap = float((widest(a) - widest(b)).norm())
        least = max(size, floor * whole)
        found[name] = (gap / least if least else gap) if math.isfinite(size) else 0.0
    return found


def norm(tree: Any) -> Tensor:
    """Euclidean norm over all P elements, a scalar."""
    return dot(tree, tree).sqrt()


def ravel(tree: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """All elements as one vector ``[P]``, leaf after leaf, and the way back to a tree."""
    values, spec = flatten(tree)
    shapes, sizes = [v.shape for v in values], [v.numel() for v in values]

    def unravel(vector: Tensor) -> Any:
        parts = torch.split(vector, sizes)
        return unflatten([part.reshape(shape) for part, shape in zip(parts, shapes)], spec)

    return torch.cat([v.reshape(-1) for v in values]), unravel


def check_floating(tree: Any, setting: str) -> None:
    """Refuse trees without leaves and leaves that are not floating-point tensors.

    Raises:
        SettingError: names ``setting`` and the leaf.
    """
    values, _ = flatten(tree)
    if not values:
        raise SettingError(setting, tree, "a tree with at least one tensor is needed")
    for i, value in enumerate(values):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise SettingError(_where(tree, setting, i), got, "a floating-point tensor is needed")
        if value.layout is not torch.strided or value.is_meta:
            _refuse_without_values(tree, setting, i, value)


def check_tensors(tree: Any, setting: str) -> None:
    """Refuse leaves that are no tensors with values: arrays, numbers, sparse and meta tensors.

    Raises:
        SettingError: names ``setting`` and the leaf.
    """
    for i, value in enumerate(leaves(tree)):
        if not isinstance(value, Tensor):
            got = type(value).__name__
            raise SettingError(_where(tree, setting, i), got, "a torch.Tensor is needed")
        if value.layout is not torch.strided or value.is_meta:
            _refuse_without_values(tree, setting, i, value)


def check_like(tree: Any, like: Any, setting: str) -> None:
    """Refuse a tree that has not the structure and shapes of ``like`` or leaves without values.

    Raises:
        SettingError: names ``setting`` and the leaf.
    """
    check_tensors(tree, setting)
    names = leaf_names(like)
    if sorted(leaf_names(tree)) != sorted(names):
        raise SettingError(setting, leaf_names(tree), f"a tree with {names} is needed")
    shapes = {name: value.shape for name, value in zip(names, leaves(like))}
    for i, (name, value) in enumerate(zip(leaf_names(tree), leaves(tree))):
        if value.shape != shapes[name]:
            raise SettingError(
                _where(tree, setting, i), tuple(value.shape),
                f"the shape {tuple(shapes[name])} is needed",
            )  # fmt: skip


def is_finite(tree: Any) -> bool:
    """Whether every element of every leaf is finite. Reads values: not for use inside vmap."""
    return all(bool(torch.isfinite(leaf).all()) for leaf in leaves(tree))


def _where(tree: Any, setting: str, index: int) -> str:
    name = leaf_names(tree)[index]
    return f"{setting}[{name}]" if name else setting


def _refuse_without_values(tree: Any, setting: str, index: int, value: Tensor) -> NoReturn:
    got = "a meta tensor" if value.is_meta else str(value.layout)
    needed = "a dense tensor with values is needed (to_empty, to_dense)"
    raise SettingError(_where(tree, setting, index), got, needed)


def _gather(tree: Any, found: list[Any]) -> None:
    """Add a tree's leaves."""
    kind = type(tree)
    if isinstance(tree, Tensor):
        found.append(tree)
    elif kind is dict:
        for value in tree.values():
            _gather(value, found)
    elif is_row(kind):
        for value in tree:
            _gather(value, found)
    else:  # what pytree alone knows
        found.extend(pytree.tree_leaves(tree))


def row_of(kind: Any, values: Iterable[Any]) -> Any:
    """A list, tuple or named tuple of values."""
    return kind(values) if kind is list or kind is tuple else kind(*values)


def is_row(kind: type) -> bool:
    """Whether a type is list, tuple or a named tuple, whose values are a tree's branches."""
    if kind is list or kind is tuple:
        return True
    known = _NAMED_ROWS.get(kind)
    if known is None:
        known = _NAMED_ROWS[kind] = issubclass(kind, tuple) and pytree.is_namedtuple_class(kind)
    return known


_NAMED_ROWS: dict[type, bool] = {}  # every step asks for a few types, many times


def _key_name(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
