"""Who of the ranks is there: a pulse of each in a store, and what is said of those that are lost.

Axes: R ranks.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from torch.distributed.distributed_c10d import Store

from metalearn.errors import RankError, SettingError

__all__ = ["Watch"]

_PULSE = 1.0
"""Seconds between two."""
_POLL = 0.1
"""Seconds between two looks for who has come."""
_PATIENCE = 3.5
"""Seconds without a pulse after which a rank is gone that did not come to a meeting."""
_LONG_PATIENCE = 45.0
"""The same of one that is waited for without a limit: it may be busy, or swapped out."""


class Watch:
    """Keeps a rank's pulse in a store that all ranks see, and reads those of the others.

    A meeting that fails tells nothing of why. Here a rank is gone if its pulse has stopped; it
    hangs if it has a pulse and does not come; and what ended it is known if it could still say so.
    No clocks of machines are compared.

    Args:
        store: a client of its own, which no other thread uses.
        rank: of this process.
        count: R.
        timeout: seconds that a meeting waits.
        heard: is given what other ranks `tell`, by their number; called from a thread.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        count: int,
        timeout: float,
        heard: Callable[[int, str], None] | None = None,
    ) -> None:
        self._store, self.rank, self.count, self.timeout = store, rank, count, timeout
        self._heard, self._lock, self._end = heard, threading.Lock(), threading.Event()
        self._meetings, self._beats, self._said = 0, 0, 0
        self._known = [0] * count  # words of each that were heard
        self._waiting: list[tuple[int, str]] = []
        self._thread = threading.Thread(target=self._beat, name="ranks", daemon=True)
        self._thread.start()

    def begin(self, known: Mapping[str, str]) -> None:
        """Wait until all ranks are there, and see that they can meet.

        Args:
            known: what they have to have alike for that, by its name, beside the count R.

        Raises:
            SettingError: names what a rank has otherwise than the first.
            RankError: one has left again, or did not come in time.
        """
        end = time.monotonic() + self.timeout
        try:
            with self._lock:
                own = {"WORLD_SIZE": self.count, **known}
                self._store.set(f"here/{self.rank}", json.dumps(own))
            first = self._known_of(0, end)
            for rank in (self.rank, *range(1, self.count)):
                other = self._known_of(rank, end)
                for name, value in first.items():
                    if other[name] != value:
                        accepted = f"{value} is needed, as rank 0 has it"
                        raise SettingError(f"{name} of rank {rank}", other[name], accepted)
        except RuntimeError as error:
            if isinstance(error, RankError):
                raise
            raise RankError("rank 0 is gone, and with it the place where ranks meet") from error

    def _known_of(self, rank: int, end: float) -> dict[str, Any]:
        """What a rank says of itself, as soon as it is there."""
        while (known := self._read(f"here/{rank}")) is None:
            if self._read(f"left/{rank}") is not None:
                raise RankError(self._said_of(rank, None)[1])
            if time.monotonic() > end:
                raise RankError(self.who_is_missing() or f"rank {rank} never came")
            time.sleep(_POLL)
        return dict(known)

    def enter(self) -> None:
        """This rank comes to its next meeting."""
        self._meetings += 1

    def tell(self, words: str) -> None:
        """Let rank 0 hear something."""
        with self._lock:
            self._store.set(f"words/{self.rank}/{self._said}", words)
            self._said += 1
            self._store.set(f"said/{self.rank}", str(self._said))

    def leave(self, reason: str = "") -> None:
        """End the pulse; ``reason`` is what ended this rank, empty where others did, or nothing."""
        self._end.set()
        self._thread.join(_PATIENCE)
        with self._lock, suppress(RuntimeError):  # where the store is gone there is nobody to tell
            self._hear()
            self._hear()
            self._store.set(f"left/{self.rank}", json.dumps(reason))

    def wait_for_others(self) -> None:
        """Give those who ask who is missing the time to; whoever keeps the store leaves last."""
        end = time.monotonic() + 2 * _PATIENCE
        with suppress(RuntimeError):
            while time.monotonic() < end:
                if all(self._read(f"left/{r}") is not None for r in self._others()):
                    return
                time.sleep(0.1)

    def wait_for_all(self) -> str:
        """Return when all ranks have come to this meeting; a sentence where one never will.

        They are waited for as long as they have a pulse. Of several that are lost the likeliest
        cause is named: who said what ended it, then whose pulse stopped first.
        """
        heard = {rank: (0, time.monotonic()) for rank in self._others()}
        first_lost: float | None = None
        try:
            self._publish()
            while True:
                lost, missing = self._lost(heard)
                if lost:
                    now = time.monotonic()
                    first_lost = now if first_lost is None else first_lost
                    weight, _, words = min(lost)
                    # Who has left without a reason may have done so because of another.
                    if weight < 3 or now - first_lost > _PATIENCE:
                        return words
                if not missing:
                    return ""
                time.sleep(_POLL)
        except RuntimeError:
            return "rank 0 is gone, and with it the place where ranks meet"

    def _lost(
        self, heard: dict[int, tuple[int, float]]
    ) -> tuple[list[tuple[int, float, str]], bool]:
        """Who will not come, with weight, time of the last new pulse and words; if any has to.

        Args:
            heard: pulse and time at which it was new, by rank; brought up to date.
        """
        lost, missing = [], False
        for rank, (beats, since) in heard.items():
            pulse, now = self._read(f"pulse/{rank}"), time.monotonic()
            left = self._read(f"left/{rank}")
            if pulse is not None and pulse["meetings"] >= self._meetings:
                continue
            missing = True
            if pulse is not None and pulse["beats"] != beats:
                since = now
                heard[rank] = pulse["beats"], now
            if left is not None or now - since > _LONG_PATIENCE:
                weight, words = self._said_of(rank, pulse)
                if weight in (0, 1, 3):
                    lost.append((weight, since, words))
        return lost, missing

    def who_is_missing(self) -> str:
        """A sentence that names who did not come to the last meeting; empty where all seem to."""
        try:
            before = {rank: self._read(f"pulse/{rank}") for rank in self._others()}
            time.sleep(_PATIENCE)
            said = [self._said_of(rank, before[rank]) for rank in self._others()]
        except RuntimeError:
            return "rank 0 is gone, and with it the place where ranks meet"
        reasons = sorted((weight, words) for weight, words in said if words)
        if not reasons:
            return ""
        return "; ".join(words for weight, words in reasons if weight == reasons[0][0])

    def _said_of(self, rank: int, before: Any) -> tuple[int, str]:
        """What is wrong with a rank, and how likely that is no consequence: less is likelier."""
        left, now = self._read(f"left/{rank}"), self._read(f"pulse/{rank}")
        if left:
            return 0, f"rank {rank} ended: {left}"
        if left is not None:
            return 3, f"rank {rank} has left"
        if now is None:
            return 1, f"rank {rank} never came"
        if before is not None and now["beats"] == before["beats"]:
            return 1, f"rank {rank} is gone: it was killed, or its machine or network is lost"
        if now["meetings"] < self._meetings:
            return 2, f"rank {rank} hangs: the others have waited {self.timeout:g} s for it"
        return 4, ""

    def _others(self) -> list[int]:
        return [rank for rank in range(self.count) if rank != self.rank]

    def _read(self, key: str) -> Any:
        with self._lock:
            return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def _publish(self) -> None:
        """Let the others see this rank, and to how many meetings it has come."""
        with self._lock:
            self._beats += 1
            pulse = {"beats": self._beats, "meetings": self._meetings}
            self._store.set(f"pulse/{self.rank}", json.dumps(pulse))

    def _beat(self) -> None:
        while not self._end.is_set():
            try:
                self._publish()
                with self._lock:
                    self._hear()
            except RuntimeError:
                return  # the store is gone; the next meeting says so
            self._end.wait(_PULSE)

    def _hear(self) -> None:
        """Note what other ranks have said since, and pass on what was noted a pulse ago.

        By then this rank has said by itself what it had to say of the same.
        """
        if self._heard is None:
            return
        waiting, self._waiting = self._waiting, []
        for rank, words in waiting:
            self._heard(rank, words)
        for rank in self._others():
            key = f"said/{rank}"
            said = int(self._store.get(key)) if self._store.check([key]) else 0
            for number in range(self._known[rank], said):
                words = self._store.get(f"words/{rank}/{number}").decode()
                self._waiting.append((rank, words))
            self._known[rank] = said
