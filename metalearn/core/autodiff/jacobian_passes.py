"""Jacobians by batched passes over unit vectors; the engine of `autodiff.derivatives`.

Axes: ``[*y]`` a leaf of the outputs, ``[*x]`` a leaf of the inputs, R rows or columns.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn.core.autodiff.adjoint_tests import (
    DISAGREE,
    coarsest_eps,
    eps_of,
    is_concrete,
    mismatch,
    random_like,
    refuse_forward,
)
from metalearn.core.autodiff.derivative_modes import (
    Leaves,
    is_missing,
    outputs_and_vjp,
    vjp_function,
)
from metalearn.core.autodiff.torch_refusals import explaining_refusals, is_refusal
from metalearn.core.tree import flatten, tree_map, unflatten
from metalearn.errors import SettingError

__all__ = ["JacobianPasses", "by_columns", "by_rows", "for_each_output", "prefers_forward"]

Pullback = Callable[[Any], Any]


class JacobianPasses:
    """How a Jacobian is taken; its first one that can be tested decides for those that follow."""

    def __init__(self, mode: str, chunk_size: int | None) -> None:
        self.mode, self.chunk_size = mode, chunk_size
        self.looped = False
        self._tested: set[str] = set()

    def jacobian(
        self,
        function: Callable[[Leaves], Any],
        inputs: Leaves,
        spec: Any,
        pull: Pullback | None = None,
    ) -> Any:
        """Of a function of leaves; the tree ``spec`` of them stands in the value.

        ``pull`` is given for a gradient, whose value is shaped like its argument.
        """
        columns = partial(by_columns, function, inputs, spec, self.chunk_size)
        if self.mode == "forward":
            found = columns()
            self._is_confirmed(
                "forward",
                function,
                inputs,
                found,
                lambda u: outputs_and_vjp(function, inputs, u)[1],
            )
            return found
        if pull is None:
            outputs, pull = vjp_function(function, inputs)
        else:
            outputs = unflatten(inputs, spec)
        sure = "auto" in self._tested or is_concrete(inputs)
        if self.mode == "auto" and sure and prefers_forward(inputs, outputs):
            try:
                found = columns()
                if self._is_confirmed("auto", function, inputs, found, pull):
                    return found
            except SettingError as error:
                if error.__cause__ is None:  # not of torch
                    raise
            self.mode = "reverse"
        try:
            return self._by_rows(function, outputs, pull, inputs, spec)
        except SettingError as error:
            if self.mode == "reverse" or not is_missing(error):
                raise
            return columns()

    def _by_rows(
        self, function: Any, outputs: Any, pull: Pullback, inputs: Leaves, spec: Any
    ) -> Any:
        take = partial(by_rows, outputs, pull, spec, self.chunk_size)
        try:
            found = take(self.looped)
            alone = sum(y.numel() for y in flatten(outputs)[0]) == 1
            if alone or self._is_confirmed("reverse", function, inputs, found, pull):
                return found
        except (RuntimeError, ValueError) as error:
            if self.looped or not is_refusal(error, "transform"):
                raise
        self.looped = True
        return take(True)

    def _is_confirmed(
        self, mode: str, function: Any, inputs: Leaves, found: Any, pull: Pullback
    ) -> bool:
        """Whether to keep what was found, by one reverse pass."""
        if mode in self._tested or self.looped or not is_concrete(inputs):
            return True
        self._tested.add(mode)
        count, blocks = len(inputs), flatten(found)[0]
        axes = [b.dim() - inputs[0].dim() for b in blocks[::count]]
        along = random_like([b.new_empty(b.shape[:n]) for b, n in zip(blocks[::count], axes)])
        try:
            right = pull(along)
        except SettingError as error:
            if not is_missing(error):
                raise
            return True  # there is no reverse mode to test it by
        given = ([blocks[i::count] for i in range(count)], right, along)
        sides = mismatch(*given, eps_of([*along, *right]))
        if isinstance(sides, str):  # perhaps it is rounding in a coarser type, as under autocast
            sides = mismatch(*given, coarsest_eps(partial(function, inputs)))
        if isinstance(sides, bool):
            return mode != "auto" or not sides  # where nothing is finite, autograd decides
        if mode == "forward":
            refuse_forward(sides, mode)
        modes = ("forward", "reverse") if mode == "auto" else ("batched reverse", "one by one")
        sentence = (
            f"{DISAGREE.format(modes[0])} ({sides}); the Jacobian is taken in {modes[1]} mode"
        )
        warnings.warn(sentence, stacklevel=_caller_level())
        return False


def _caller_level() -> int:
    """Of the first caller outside of the package, for a warning that its caller gives."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "metalearn":
        level, frame = level + 1, frame.f_back
    return level


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

    return for_each_output(row, ys, out_spec, chunk, looped)


def for_each_output(
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
        with explaining_refusals(
            "mode", "forward", "mode='reverse' would do", "forward", "transform"
        ):
            values, out_spec = flatten(torch.func.vmap(push, out_dims=-1)(*basis))
        parts.append(values)
    counts, blocks = [x.numel() for x in inputs], []
    for columns in _joined(parts, -1):
        split = torch.split(columns, counts, -1) if len(inputs) > 1 else (columns,)
        block = [c.reshape(c.shape[:-1] + x.shape) for c, x in zip(split, inputs)]
        blocks.append(unflatten(block, spec))
    return unflatten(blocks, out_spec)


def prefers_forward(inputs: Any, outputs: Any) -> bool:
    """Whether a Jacobian has more rows than columns."""
    counts = [sum(math.prod(x.shape) for x in flatten(tree)[0]) for tree in (inputs, outputs)]
    return bool(counts[0] < counts[1])


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
