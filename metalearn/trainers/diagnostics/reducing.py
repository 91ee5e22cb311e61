"""Reductions of gradients that come in populations and in chunks: `metalearn.core.Reduction`.

Axes: G populations of a block, n units of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from metalearn.core import Reduction
from metalearn.core.tree import flatten, tree_map, unflatten
from metalearn.trainers.diagnostics.protocol import GradientChunk, GradientUnits

__all__ = ["reduce_units"]


def reduce_units(
    units: GradientUnits,
    reductions: Iterable[Reduction],
    *,
    check: Callable[[], None] = lambda: None,
) -> dict[Reduction, Any]:
    """Several reductions in one pass over the gradients of all units.

    Args:
        units: whose gradients are taken, once.
        reductions: each written for one population; populations are a vmapped axis over it.
        check: called between chunks.

    Returns:
        What each gives of every population, leaves ``[G, ...]`` over all blocks.
    """
    found: dict[Reduction, list[Any]] = {reduction: [] for reduction in reductions}
    for block in units.blocks():
        states = {reduction: _Population(reduction) for reduction in found}
        for chunk in block:
            check()
            for state in states.values():
                state.update(chunk)
        for reduction, state in states.items():
            found[reduction].append(state.finish())
    return {reduction: tree_map(_joined, *blocks) for reduction, blocks in found.items()}


def _joined(*parts: Any) -> Any:
    """Tensors of all blocks, one after another; what else there is, is the same in each."""
    return torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]


class _Population:
    """The state of a reduction for each of G populations.

    Tensors of a state are mapped over populations; what else it has (a count) is the same for all.
    """

    def __init__(self, reduction: Reduction) -> None:
        self._reduction = reduction
        self._state: Any = None
        self._count: int | None = None  # G

    def update(self, chunk: GradientChunk) -> None:
        """Take n further units of each population."""
        chunk = {name: grads.detach() for name, grads in chunk.items()}
        if self._count is None:
            alone = {name: grads[0, 0] for name, grads in chunk.items()}
            self._count = count = len(next(iter(chunk.values())))
            self._state = tree_map(
                lambda x: x.expand(count, *x.shape) if isinstance(x, Tensor) else x,
                self._reduction.init(alone),
            )
        self._state = _mapped(self._reduction.update, self._count, self._state, chunk)

    def finish(self) -> Any:
        """What the reduction gives, leaves ``[G, ...]``."""
        assert self._count is not None
        return _mapped(self._reduction.finish, self._count, self._state)


def _mapped(function: Callable[..., Any], count: int, *trees: Any) -> Any:
    """``function`` of each of G populations by one vmap over the tensors of ``trees``."""
    values, spec = flatten(trees)
    tensors = [value for value in values if isinstance(value, Tensor)]
    shape: list[Any] = []

    def one(_: Tensor, *mapped: Tensor) -> list[Tensor]:
        rest = iter(mapped)
        given = unflatten([next(rest) if isinstance(v, Tensor) else v for v in values], spec)
        found, *of = flatten(function(*given))
        shape[:] = [found, *of]
        return [value for value in found if isinstance(value, Tensor)]

    results = iter(torch.vmap(one)(torch.empty(count), *tensors))
    found, spec = shape
    return unflatten([next(results) if isinstance(v, Tensor) else v for v in found], spec)
