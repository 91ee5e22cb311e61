"""Which tasks, or which samples of a task, are taken at a time, so that a block stays in the cache.

Axes: T tasks, B samples, N = B·H'·W' positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.core.ops.columns import Columns

__all__ = ["Block", "Blocks"]

_BLOCK = 2**20  # bytes of a block and thread on a CPU; less costs barriers
_ROWS = 256  # of a product, that are worth a thread
_SUMS = 2**22  # numbers of sums that threads have at most
_LARGE = 2**22  # bytes of a task that no cache holds: samples of it are taken apart


class Block(NamedTuple):
    """Some tasks, or some samples of one."""

    tasks: slice
    samples: slice
    positions: slice
    """Of N, those of the samples."""

    def of(self, tensor: Tensor) -> Tensor:
        """Its part of ``[T, N, ...]``."""
        return tensor[self.tasks, self.positions]

    def add_product(self, a: Tensor, b: Tensor, total: Tensor) -> None:
        """Write aᵀ·b to its tasks' part of a total, or add it to what samples before have left.

        a ``[t, n, ...]`` and b ``[t, n, ...]`` have many rows n and few columns, so that a product
        for one task has no parts for several threads: each takes some of its rows.
        """
        own, pieces = total[self.tasks], 1
        if len(a) == 1 and a.device.type == "cpu":
            most = min(a.shape[1] // _ROWS, _SUMS // max(1, a.shape[2] * b.shape[2]))
            pieces = max(1, min(torch.get_num_threads(), most))
        each = a.shape[1] // pieces
        if pieces == 1:
            if self.samples.start:
                own.baddbmm_(a.mT, b)
            else:
                torch.bmm(a.mT, b, out=own)
            return
        main = each * pieces
        parts = (rows[0, :main].view(pieces, each, rows.shape[-1]) for rows in (a, b))
        sums = own.new_empty(pieces, *own.shape[1:])  # of its type, under autocast too
        product = torch.bmm(next(parts).mT, next(parts), out=sums).sum(0, keepdim=True)
        if main < a.shape[1]:
            product.baddbmm_(a[:, main:].mT, b[:, main:])
        if self.samples.start:
            own += product
        else:
            own.copy_(product)


@dataclass(frozen=True)
class Blocks:
    """All tasks and samples, in order."""

    count: int
    """T."""
    samples: int
    """B."""
    each: int
    """Positions of a sample, N / B."""
    tasks: int
    """How many tasks a block has at most."""
    together: int
    """How many samples of each."""
    apart: bool = False
    """Whether a block is some samples of one task, which then stand in the place of tasks."""

    @classmethod
    def of(
        cls, count: int, samples: int, each: int, size: int, *, cached: bool, divisible: bool = True
    ) -> Blocks:
        """Of tasks of ``size`` bytes: small ones if ``cached``, else all at once.

        Tasks that are not ``divisible`` stay whole.
        """
        if not cached:
            return cls(count, samples, each, count, samples)
        if divisible and size > _LARGE and samples > 1:
            together = _tasks_a_block(samples, size // samples)
            return cls(count, samples, each, 1, together, apart=True)
        return cls(count, samples, each, _tasks_a_block(count, size), samples)

    @property
    def lead(self) -> tuple[int, int]:
        """Shape of the largest block's pictures, tasks in front; or samples, where they stand."""
        return (self.together, 1) if self.apart else (self.tasks, self.samples)

    def columns(self, columns: Columns, pictures: Tensor, block: Block) -> Tensor:
        """``[t, n, K]`` of a block of pictures, which holds until columns are made again."""
        part = pictures[block.tasks, block.samples]
        if not self.apart:
            return columns.of(part)
        return columns.of(part.transpose(0, 1)).flatten(0, 1)[None]

    def __iter__(self) -> Iterator[Block]:
        for start in range(0, self.count, self.tasks):
            tasks = slice(start, min(start + self.tasks, self.count))
            for first in range(0, max(1, self.samples), max(1, self.together)):
                last = min(first + self.together, self.samples)
                yield Block(tasks, slice(first, last), slice(first * self.each, last * self.each))


def _tasks_a_block(count: int, size: int) -> int:
    """Of ``count`` tasks (or samples) of ``size`` bytes: equal blocks for each thread.

    Operations split their first axis between threads; so a thread finds what it wrote itself.
    """
    threads = torch.get_num_threads()
    each = -(-count // threads)
    blocks = -(-each // max(1, _BLOCK // max(1, size)))
    return min(count, -(-each // blocks) * threads)
