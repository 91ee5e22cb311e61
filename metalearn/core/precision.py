"""Sums of squares and products of many numbers, in a type that holds them.

float16 ends at 65,504, which the square of 256 exceeds; bfloat16 has eight bits. Norms, moments,
factors and eigenvalues of such tensors are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.core.tree import leaves, tree_map

__all__ = ["in_float32", "norms_of", "squares", "widened", "widened_tree"]


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
