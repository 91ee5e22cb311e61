"""Ctrl-C, SIGTERM and SIGHUP ask a training to stop after the step at hand."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType, TracebackType
from typing import Any

from metalearn.ranks import Ranks

__all__ = ["StopRequest", "StopSignal", "Stopped"]

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # SIGINT first: from then on none ends the process
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
_HANGUP = getattr(signal, "SIGHUP", None)


class Stopped(BaseException):
    """Work that changes nothing was broken off because a stop was asked for.

    No Exception: what handles errors, in a trial or a model's own code, must let it pass.
    """


class StopRequest:
    """While it is entered, a first SIGINT, SIGTERM or SIGHUP is noted and does not end the process.

    A second SIGINT raises KeyboardInterrupt as usual, though not inside `whole`. SIGHUP stays
    ignored where it is, as under nohup. Outside the main thread, where Python allows no handlers,
    nothing is caught.

    Attributes:
        received: the signal's number, or None so far.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._whole, self._owed = 0, False

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                ignored = number == _HANGUP and handler == signal.SIG_IGN
                if handler is not None and not ignored:  # None: it is not Python's
                    self._previous[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in reversed(self._previous.items()):
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise `Stopped` if a signal has been received."""
        if self.received is not None:
            raise Stopped

    @contextmanager
    def whole(self) -> Iterator[None]:
        """What belongs together is done to its end before a second SIGINT takes effect."""
        self._whole += 1
        try:
            yield
        finally:
            self._whole -= 1
        if self._owed and not self._whole:
            self._owed = False
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None or number != signal.SIGINT:
            self.received = number
        elif self._whole:
            self._owed = True
        else:
            raise KeyboardInterrupt


class StopSignal:
    """What a loop and its parts share: whether a stop is asked for, while somebody listens.

    Where ranks share the loop, a signal to any of them counts from when all have agreed on it, so
    that all stop at the same place.
    """

    def __init__(self) -> None:
        self._idle = self._request = StopRequest()  # of no signal, unless in `listening`
        self._ranks: Ranks | None = None
        self._known = 0

    @property
    def received(self) -> int | None:
        """The signal's number, or None so far."""
        return self._request.received if self._ranks is None else self._known or None

    def shared_by(self, ranks: Ranks) -> None:
        """From here on signals count when ranks have agreed on them."""
        self._ranks = ranks

    def agree(self) -> None:
        """Hear of the signals of all ranks, and let them hear of one to this; all come here."""
        if self._ranks is not None:
            self._known = self._ranks.noted(self._request.received or 0)

    def check(self) -> None:
        """Raise `Stopped` if a signal has been received."""
        if self.received is not None:
            raise Stopped

    def whole(self) -> AbstractContextManager[None]:
        """See `StopRequest.whole`."""
        return self._request.whole()

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Note signals that ask to stop; validation, tests and diagnostics then raise `Stopped`."""
        before = self._request
        with StopRequest() as request:
            request.received, self._request = before.received, request
            try:
                yield request
            finally:
                self._request = before
                if before is self._idle and self._ranks is not None:
                    self._known = 0
                    self._ranks.forget()
