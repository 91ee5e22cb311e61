"""Random projections of gradients to few numbers, whose products are those of the gradients.

Axes: N samples, n samples of a chunk, P parameters, k numbers of a projection.
Sources: Johnson and Lindenstrauss, 1984; Achlioptas, "Database-friendly Random Projections", 2003
(random signs).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metalearn.core.precision import widened
from metalearn.core.random_tensors import signs
from metalearn.core.samples.reductions import Reduction, gradient_sketches
from metalearn.core.tree import leaves
from metalearn.errors import SettingError, check_whole
from metalearn.random_streams import AddressedStream, check_seed
from metalearn.types import Params

__all__ = ["ProjectionKind", "gradient_projections"]

ProjectionKind = Literal["signs", "sketch"]

_BLOCK = 2**20  # numbers of a projection that are drawn at once
_KEPT = 2**25  # numbers of a projection that are kept from one chunk to the next


def gradient_projections(kind: ProjectionKind, size: int, seed: int) -> Reduction:
    """Projections ``[N, k]`` of the gradients, for `metalearn.core.reduce_per_sample`.

    E ⟨s_i, s_j⟩ = ⟨g_i, g_j⟩, with a standard deviation of at most √(2/k)·‖g_i‖·‖g_j‖.
    ``"signs"``: s = Rᵀ·g/√k, R ``[P, k]`` of random signs, which takes k products for each
    parameter and is drawn block by block, anew for every chunk of samples where it has more than
    30 million numbers. ``"sketch"``: `metalearn.core.gradient_sketches`, which takes one.

    Args:
        kind: one of the two.
        size: k, at least 1.
        seed: of R; the same seed gives the same R for parameters of the same shapes in any chunks.

    Raises:
        SettingError: an unknown kind, a size below 1, no seed.
    """
    if kind not in get_args(ProjectionKind):
        raise SettingError("projection", kind, f"one of {', '.join(get_args(ProjectionKind))}")
    check_whole("size", size, 1)
    check_seed(seed)
    state = _signs if kind == "signs" else _sketch
    update = _project if kind == "signs" else _sketches(size, seed).update
    drawn: dict[Any, Any] = {}

    def init(params: Params) -> Any:
        key = tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves(params))
        if key not in drawn:
            drawn.clear()
            drawn[key] = state(params, size, seed)
        return drawn[key], []

    return Reduction(init, update, lambda state: torch.cat(state[1]))


def _sketches(size: int, seed: int) -> Reduction:
    return gradient_sketches(size, generator=_generator(seed, 0))


def _sketch(params: Params, size: int, seed: int) -> Any:
    return _sketches(size, seed).init(params)[0]


def _signs(params: Params, size: int, seed: int) -> Any:
    return _Blocks(params, size, seed)


def _project(state: Any, grads: Params) -> Any:
    blocks, found = state
    return blocks, [*found, blocks.projected(grads)]


def _generator(seed: int, block: int) -> torch.Generator:
    drawn = AddressedStream(seed, "projection", block).with_replacement(2**62, 1)
    return torch.Generator().manual_seed(int(drawn[0]))


class _Blocks:
    """Rows of R for so many parameters at a time: kept where they are few, else drawn anew."""

    def __init__(self, params: Params, size: int, seed: int) -> None:
        self._counts = [leaf.numel() for leaf in leaves(params)]
        self._size, self._seed = size, seed
        kept = sum(self._counts) * size <= _KEPT
        self._blocks = list(self._drawn()) if kept else None

    def __iter__(self) -> Iterator[tuple[int, int, int, Tensor]]:
        """Leaf, first and last row in it, and these rows ``[rows, k]``."""
        yield from self._drawn() if self._blocks is None else self._blocks

    def _drawn(self) -> Iterator[tuple[int, int, int, Tensor]]:
        step, number = max(1, _BLOCK // self._size), 0
        for leaf, count in enumerate(self._counts):
            for first in range(0, count, step):
                rows = min(step, count - first)
                like = torch.empty(0)
                drawn = signs((rows, self._size), like, _generator(self._seed, number))
                yield leaf, first, first + rows, drawn
                number += 1

    def projected(self, grads: Params) -> Tensor:
        """``[n, k]``."""
        rows = [widened(g).reshape(len(g), g[0].numel()) for g in leaves(grads)]
        total: Any = rows[0].new_zeros(len(rows[0]), self._size)
        for leaf, first, last, block in self:
            total = total + rows[leaf][:, first:last] @ block.to(rows[leaf])
        found: Tensor = total / self._size**0.5
        return found
