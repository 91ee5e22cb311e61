"""Types that numbers are computed in: sums in a wide one, networks in a narrow one where asked.

float16 ends at 65,504, which the square of 256 exceeds; bfloat16 has eight bits. Norms, moments,
factors and eigenvalues of such tensors are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from metalearn.core.tree import leaves, tree_map

__all__ = [
    "in_float32",
    "network_type",
    "networks_in",
    "norms_of",
    "squares",
    "to_type",
    "widened",
    "widened_tree",
    "without_autocast",
]

_NETWORK_TYPE: ContextVar[torch.dtype | None] = ContextVar("network_type", default=None)


@contextmanager
def networks_in(dtype: torch.dtype | None) -> Iterator[None]:
    """A block in which pure calls of modules are computed in a floating-point type.

    Parameters, buffers and inputs are cast on the way in, outputs cast back on the way out; what is
    made of them outside of the modules, such as losses, inner steps and gradients, keeps its type.
    None computes in the types that are given.
    """
    token = _NETWORK_TYPE.set(dtype)
    try:
        yield
    finally:
        _NETWORK_TYPE.reset(token)


def network_type() -> torch.dtype | None:
    """The type that pure calls of modules are computed in now; None for those that are given."""
    return _NETWORK_TYPE.get()


def to_type(tree: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors of a tree in another type; all else as it is."""

    def cast(leaf: Any) -> Any:
        floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.to(dtype) if floating else leaf

    return tree_map(cast, tree)


def widened(x: Tensor) -> Tensor:
    """X in float32 where its floating-point type has fewer bits; else x itself."""
    narrow = x.is_floating_point() and torch.finfo(x.dtype).bits < 32
    return x.float() if narrow else x


def widened_tree(tree: Any) -> Any:
    """The same for every leaf."""
    return tree_map(widened, tree)


def in_float32(matvec: Callable[[Any], Any], like: Any) -> tuple[Callable[[Any], Any], Any]:
    """A linear map and its tree for vectors in float32; the map itself sees the tree's types."""

    def times(vector: Any) -> Any:
        return widened_tree(matvec(tree_map(lambda v, x: v.to(x.dtype), vector, like)))

    wide = widened_tree(like)
    same = all(a is b for a, b in zip(leaves(wide), leaves(like)))
    return (matvec, like) if same else (times, wide)


def squares(grads: Tensor) -> Tensor:
    """Sums of squares ``[N]`` of gradients ``[N, ...]`` of one parameter."""
    grads = widened(grads)
    return grads.flatten(1).square().sum(1) if grads.dim() > 1 else grads.square()


def norms_of(squares: Sequence[Tensor]) -> Tensor:
    """Norms ``[N]`` over all parameters, from the squares of each."""
    kinds = {s.dtype for s in squares}
    if len(kinds) > 1:
        widest = max(kinds, key=lambda kind: torch.finfo(kind).bits)
        squares = [s.to(widest) for s in squares]
    return torch.stack(list(squares)).sum(0).clamp_min(0).sqrt()


def without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """A block in which autocast is off on the device of a tensor."""
    kind = like.device.type
    enabled = not like.is_meta and torch.is_autocast_enabled(kind)  # it knows no such device
    return torch.autocast(kind, enabled=False) if enabled else nullcontext()
