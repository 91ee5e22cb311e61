"""Ranks that are processes of torch.distributed.

Axes: R ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from metalearn.errors import RankError
from metalearn.ranks.protocol import Share
from metalearn.ranks.told import from_bytes, to_bytes
from metalearn.ranks.watch import Watch

__all__ = ["ProcessRanks", "messages_of"]

_BUCKET = 2**25
"""Bytes of tensors that are summed by one message: few messages, and little memory beside."""


class ProcessRanks:
    """The processes of a group of torch.distributed, which have met.

    Args:
        group: that has been made by ``init_process_group``; None is the default group.
        watch: knows who is there, where somebody looks after that.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, watch: Watch | None = None) -> None:
        self._group, self._watch = group, watch
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)
        self._note: tuple[Any, Tensor] | None = None

    @property
    def share(self) -> Share:
        """What this rank has of rows."""
        return Share(self.rank, self.count)

    def sums(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over ranks, in as few messages as fit the memory; alike on all to the last bit."""
        found: dict[str, Tensor] = {}
        with self._meeting():
            for names in messages_of(values):
                flat = torch.cat([values[name].detach().reshape(-1) for name in names])
                sent = _sendable(flat)
                dist.all_reduce(sent, group=self._group)
                sizes = [values[name].numel() for name in names]
                for name, part in zip(names, torch.split(sent.to(flat.device), sizes)):
                    found[name] = part.view(values[name].shape)
        return {name: found[name] for name in values}

    def joined(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows of all ranks one after another; ``sizes`` are how many each has."""
        most = max(sizes)
        shape = (most, *rows.shape[1:])
        kind = torch.uint8 if rows.dtype == torch.bool else rows.dtype
        own = rows.new_zeros(shape, dtype=kind)
        own[: len(rows)] = rows
        own = _sendable(own)
        parts = [torch.empty_like(own) for _ in sizes]
        with self._meeting():
            dist.all_gather(parts, own, group=self._group)
        every = torch.cat([part[:size] for part, size in zip(parts, sizes)])
        return every.to(rows.device, rows.dtype)

    def agreed(self, value: Any) -> Any:
        """The value of rank 0, for all."""
        return self.of_each(value if self.rank == 0 else None)[0]

    def of_each(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order."""
        told = torch.frombuffer(bytearray(to_bytes(value)), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        with self._meeting():
            dist.all_gather(sizes, torch.tensor([len(told)]), group=self._group)
        known = [int(size) for size in sizes]
        every = self.joined(told, known)
        return [from_bytes(part.numpy().tobytes()) for part in torch.split(every, known)]

    def noted(self, number: int) -> int:
        """The largest number that any rank had at the call before this one; 0 at the first."""
        with self._meeting():
            before = 0
            if self._note is not None:
                work, known = self._note
                work.wait()
                before = int(known)
            mine = torch.tensor([number])
            work = dist.all_reduce(mine, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
            self._note = work, mine
        return before

    def gather(self) -> None:
        """Wait until all ranks have come here, however long what they do before may take."""
        if self._watch is None:
            return
        self._watch.enter()
        if lost := self._watch.wait_for_all():
            raise RankError(lost)

    def forget(self) -> None:
        """Let the next `noted` be as the first."""
        if self._note is not None:
            with self._meeting():
                self._note[0].wait()
            self._note = None

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        """Errors of a meeting that somebody did not come to name them.

        Raises:
            RankError: instead.
        """
        if self._watch is not None:
            self._watch.enter()
        try:
            yield
        except RuntimeError as error:
            lost = "" if self._watch is None else self._watch.who_is_missing()
            first = str(error).strip().splitlines()[0][:200]
            raise RankError(lost or f"the ranks did not meet ({first})") from error


def _sendable(value: Tensor) -> Tensor:
    """It where torch has a way between ranks, by NCCL or gloo; else on the processor."""
    return value if value.device.type in ("cpu", "cuda") else value.cpu()


def messages_of(values: Mapping[str, Tensor]) -> Iterable[list[str]]:
    """Names of tensors of one type and device that make up a message."""
    kinds: dict[Any, list[str]] = {}
    for name, value in values.items():
        kinds.setdefault((value.dtype, value.device), []).append(name)
    for names in kinds.values():
        bucket: list[str] = []
        held = 0
        for name in names:
            size = values[name].numel() * values[name].element_size()
            if bucket and held + size > _BUCKET:
                yield bucket
                bucket, held = [], 0
            bucket.append(name)
            held += size
        yield bucket
