"""Ranks that are threads of one process: the same meetings, and no process to be started."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, TypeVar

import torch
from torch import Tensor

from metalearn.ranks import Ranks, Share
from metalearn.ranks.told import from_bytes, to_bytes

__all__ = ["ThreadRanks", "on_ranks"]

Found = TypeVar("Found")
WAIT = 120.0
_one_at_a_time = threading.Lock()
"""Networks are made by global draws, which others would take for their own."""


class Meeting:
    """Where threads hand over what they bring, and take what all have brought."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count, timeout=WAIT)
        self.brought: list[Any] = [None] * count
        self.kinds: list[str] = [""] * count

    def __call__(self, rank: int, kind: str, value: Any) -> list[Any]:
        self.brought[rank], self.kinds[rank] = value, kind
        self.barrier.wait()
        assert len(set(self.kinds)) == 1, f"ranks came to different meetings: {self.kinds}"
        found = list(self.brought)
        self.barrier.wait()
        return found


class ThreadRanks(Ranks):
    """One of R threads."""

    def made(self, make: Callable[..., Found], **settings: Any) -> Found:
        """What a function makes for this rank; none goes on before all are made."""
        with _one_at_a_time:
            found = make(ranks=self, **settings)
        self._meet("made", None)
        return found

    def __init__(self, rank: int, count: int, meeting: Meeting) -> None:
        self.rank, self.count, self._meeting, self._noted = rank, count, meeting, 0
        self.messages: list[str] = []

    @property
    def share(self) -> Share:
        return Share(self.rank, self.count)

    def _meet(self, kind: str, value: Any) -> list[Any]:
        self.messages.append(kind)
        return self._meeting(self.rank, kind, value)

    def sums(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kinds = [(name, tuple(v.shape), str(v.dtype)) for name, v in values.items()]
        every = self._meet(f"sums of {kinds}", {n: v.detach().clone() for n, v in values.items()})
        return {name: reduce(torch.add, [one[name] for one in every]) for name in values}

    def joined(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        assert len(rows) == sizes[self.rank]
        return torch.cat(self._meet(f"rows {rows.dtype} {list(sizes)}", rows.detach().clone()))

    def agreed(self, value: Any) -> Any:
        return self.of_each(value)[0]

    def of_each(self, value: Any) -> list[Any]:
        return [from_bytes(text) for text in self._meet("values", to_bytes(value))]

    def noted(self, number: int) -> int:
        before, self._noted = self._noted, max(self._meet("note", number))
        return before

    def gather(self) -> None:
        self._meet("gathered", None)

    def forget(self) -> None:
        self._noted = 0


def on_ranks(count: int, function: Callable[[ThreadRanks], Found]) -> list[Found]:
    """What a function gives on each of so many ranks; the first error of any is raised."""
    meeting, found, errors = Meeting(count), dict[int, Found](), list[BaseException]()

    def run(rank: int) -> None:
        try:
            found[rank] = function(ThreadRanks(rank, count, meeting))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        causes = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
        raise (causes or errors)[0]
    return [found[rank] for rank in range(count)]
