"""Jacobians by batched passes over unit vectors; the engine of `metalearn.core.derivatives`.

Axes: ``[*y]`` a leaf of the outputs, ``[*x]`` a leaf of the inputs, R rows or columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.core.refusals import refusing
from metalearn.core.tree import flatten, tree_map, unflatten

__all__ = ["by_columns", "by_rows", "each_output"]

Leaves = list[Tensor]


def by_rows(
    outputs: Any,
    pull: Callable[[Sequence[Tensor]], Any],
    spec: Any,
    chunk: int | None,
    looped: bool = False,
) -> Any:
    """Reverse passes, one for each output element; ``pull`` maps cotangents to cotangents.

    A tree like the outputs; in the place of each leaf, a tree ``spec`` of blocks ``[*y, *x]``.
    """
    ys, out_spec = flatten(outputs)

    def row(*cotangents: Tensor) -> Any:
        return unflatten(pull(cotangents), spec)

    return each_output(row, ys, out_spec, chunk, looped)


def each_output(
    function: Callable[..., Any], ys: Leaves, out_spec: Any, chunk: int | None, looped: bool = False
) -> Any:
    """``function`` of the unit cotangent of each output element, batched, or ``looped`` over.

    A tree like the outputs; in the place of leaf y, the tree that ``function`` gives, its leaves
    with ``[*y]`` in front.
    """
    if len(ys) == 1 and ys[0].numel() == 1:  # no need of vmap
        values, spec = flatten(function(torch.ones_like(ys[0])))
        rows = [v.unsqueeze(0) for v in values]
    else:
        parts = []
        for basis in _basis(ys, chunk):
            if looped:
                of_each = [function(*units) for units in zip(*basis)]
                values, spec = flatten(tree_map(lambda *rows: torch.stack(rows), *of_each))
            else:
                values, spec = flatten(torch.func.vmap(function)(*basis))
            parts.append(values)
        rows = _joined(parts, 0)
    counts = [y.numel() for y in ys]
    split = [torch.split(r, counts) for r in rows] if len(ys) > 1 else [(r,) for r in rows]
    blocks = []
    for j, y in enumerate(ys):
        blocks.append(unflatten([s[j].reshape(y.shape + s[j].shape[1:]) for s in split], spec))
    return unflatten(blocks, out_spec)


def by_columns(
    function: Callable[[Leaves], Any], inputs: Leaves, spec: Any, chunk: int | None
) -> Any:
    """Forward passes, one for each input element; the value is shaped as that of `by_rows`."""

    def push(*tangents: Tensor) -> Any:
        return torch.func.jvp(function, (inputs,), (list(tangents),))[1]

    parts = []
    for basis in _basis(inputs, chunk):
        with refusing("mode", "forward", "mode='reverse' would do", "forward", "transform"):
            values, out_spec = flatten(torch.func.vmap(push, out_dims=-1)(*basis))
        parts.append(values)
    counts, blocks = [x.numel() for x in inputs], []
    for columns in _joined(parts, -1):
        split = torch.split(columns, counts, -1) if len(inputs) > 1 else (columns,)
        block = [c.reshape(c.shape[:-1] + x.shape) for c, x in zip(split, inputs)]
        blocks.append(unflatten(block, spec))
    return unflatten(blocks, out_spec)


def _joined(parts: Sequence[Leaves], dim: int) -> Leaves:
    """Chunks of every leaf put together."""
    if len(parts) == 1:
        return parts[0]
    return [torch.cat(pieces, dim) for pieces in zip(*parts)]


def _basis(leaves: Leaves, chunk: int | None) -> Iterator[Leaves]:
    """Unit vectors over all elements of all leaves, ``chunk`` at a time: ``[R, *leaf]``."""
    total = sum(x.numel() for x in leaves)
    size = max(1, total if chunk is None else min(chunk, total))
    for start in range(0, max(total, 1), size):
        rows, offset, basis = min(size, total - start), 0, []
        for x in leaves:
            unit = torch.zeros(rows, x.numel(), dtype=x.dtype, device=x.device)
            if -rows < start - offset < x.numel():
                unit.diagonal(start - offset).fill_(1)
            basis.append(unit.view(rows, *x.shape))
            offset += x.numel()
        yield basis
