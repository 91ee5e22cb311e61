"""The processes that share a training, as its parts see them.

Axes: R ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from metalearn.errors import SettingError

__all__ = ["OneRank", "Ranks", "Share", "check_enough", "refuse_division"]

_Rows = TypeVar("_Rows", bound=Sequence[Any] | Tensor)


@dataclass(frozen=True)
class Share:
    """What one of R ranks has of rows that are divided among them, in order.

    The first ranks have one row more where R does not divide their number.
    """

    rank: int = 0
    count: int = 1
    """R."""

    def bounds(self, rows: int, rank: int | None = None) -> tuple[int, int]:
        """The first of a rank's rows (this one's by default), and the one after its last."""
        number = self.rank if rank is None else rank
        each, more = divmod(rows, self.count)
        return number * each + min(number, more), (number + 1) * each + min(number + 1, more)

    def sizes(self, rows: int) -> list[int]:
        """How many of the rows each rank has."""
        bounds = [self.bounds(rows, rank) for rank in range(self.count)]
        return [stop - start for start, stop in bounds]

    def of(self, rows: _Rows) -> _Rows:
        """This rank's part of a sequence, or of a tensor along its first axis."""
        start, stop = self.bounds(len(rows))
        return rows[start:stop]  # type: ignore[return-value]


def check_enough(setting: str, value: int, share: Share) -> None:
    """Refuse fewer of what is divided than there are ranks.

    Raises:
        SettingError: names the setting.
    """
    if value < share.count:
        accepted = f"at least {share.count} are needed, one for each of {share.count} ranks"
        raise SettingError(setting, value, accepted)


def refuse_division(what: str, share: Share) -> NoReturn:
    """Say that something is done by one process alone.

    Raises:
        SettingError: that.
    """
    raise SettingError("ranks", share.count, f"1 is needed: {what} is not divided among several")


@runtime_checkable
class Ranks(Protocol):
    """R processes that take the same step on parts of its batch.

    Every method but `forget` is a meeting: all ranks have to call it, in the same order, and wait
    there for the slowest.
    """

    rank: int
    """Of this process, from 0."""
    count: int
    """R."""

    @property
    def share(self) -> Share:
        """What this rank has of rows."""

    def sums(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over ranks of tensors that have the same names and shapes on all, alike on all."""

    def joined(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows of all ranks one after another; ``sizes`` are how many each has."""

    def agreed(self, value: Any) -> Any:
        """The value of rank 0, for all: plain, with tensors in it, which come to the processor."""

    def of_each(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order; as of `agreed`."""

    def noted(self, number: int) -> int:
        """The largest number that any rank had at the call before this one; 0 at the first.

        So nobody waits for it.
        """

    def gather(self) -> None:
        """Wait until all ranks have come here, however long what they do before may take.

        Other meetings give up after a while. This one ends early where a rank is lost.
        """

    def forget(self) -> None:
        """Let the next `noted` be as the first; no meeting, but at the same place on all ranks."""


class OneRank:
    """A single process, whose sums are those of all."""

    rank = 0
    count = 1
    share = Share()

    def sums(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values as they are."""
        return dict(values)

    def joined(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows as they are."""
        return rows

    def agreed(self, value: Any) -> Any:
        """The value as it is."""
        return value

    def of_each(self, value: Any) -> list[Any]:
        """The one value."""
        return [value]

    def noted(self, number: int) -> int:
        """The number: nobody else is there to hear of it later."""
        return number

    def gather(self) -> None:
        """Nobody else is to come."""

    def forget(self) -> None:
        """Nothing is kept."""
