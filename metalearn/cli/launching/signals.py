"""Ctrl-C, SIGTERM and SIGHUP on their way to the jobs of a sweep.

joblib would answer them by killing its workers. So the process that a person started holds them
back from itself, as all do that it starts, and hands them on; jobs save their runs and end.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import threading
from contextlib import suppress
from importlib import import_module
from types import FrameType

__all__ = ["StoppedJobs", "hand_on_signals", "keep_signals", "listen_as_job"]

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_LATER = 0.5
"""Seconds between two looks for processes that have been started since a signal."""
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class _Handing:
    """A thread that hears of signals to this process, and sends them to child processes.

    What is started meanwhile has them held back, until it is ready to take them (`listen_as_job`).
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.told: set[int] = set()
        self.handlers = {n: signal.getsignal(n) for n in _SIGNALS}
        self.signals = [n for n in _SIGNALS if self.handlers[n] is not signal.SIG_IGN]  # nohup
        self.heard, self.said = os.pipe()
        os.set_blocking(self.said, False)
        for number in self.signals:
            signal.signal(number, _nothing)  # the thread hears of them by the pipe
        _start_trackers()
        self.wakeup = signal.set_wakeup_fd(self.said, warn_on_full_buffer=False)
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)
        self.thread = threading.Thread(target=self._wait, daemon=True, name="signals")
        self.thread.start()

    def end(self) -> None:
        """Let this process have its signals again."""
        signal.set_wakeup_fd(self.wakeup)
        os.close(self.said)
        self.thread.join()
        os.close(self.heard)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
        for number in self.signals:
            signal.signal(number, self.handlers[number] or signal.SIG_DFL)

    def _wait(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.signals)
        while True:
            if not select.select([self.heard], [], [], None if self.received is None else _LATER)[
                0
            ]:
                self._send(signal.SIGTERM, _children() - self.told)
                continue
            heard = os.read(self.heard, 1)
            if not heard:
                return
            if heard[0] in self.signals:
                self._hand_on(heard[0])

    def _hand_on(self, number: int) -> None:
        # A terminal sends SIGINT to jobs as well, and a second one would end them at once.
        sent = signal.SIGTERM if self.received is None else number
        self.received = self.received or number
        self._send(sent, _children())

    def _send(self, number: int, children: set[int]) -> None:
        for child in children:
            with suppress(OSError):
                os.kill(child, number)
        self.told |= children


def _children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def _start_trackers() -> None:
    """Now, since to start one lets signals through to this thread and to what it starts later."""
    for module in ("multiprocessing", "joblib.externals.loky.backend"):
        with suppress(ImportError, AttributeError):
            import_module(f"{module}.resource_tracker").ensure_running()


def _nothing(number: int, frame: FrameType | None) -> None:
    return


class StoppedJobs:
    """What a process that runs jobs one after another knows of signals.

    Attributes:
        received: the signal's number, or None so far: no further job is begun after one.
        busy: whether a job runs, which a signal ends where it is not the training that takes it.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.busy = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handler of a signal."""
        first, self.received = self.received is None, self.received or number
        if self.busy and first:  # a further one would break into its ending
            raise SystemExit(128 + number)


_handing: list[_Handing] = []


def hand_on_signals() -> None:
    """From here on signals to this process go to the processes that it has started."""
    main = threading.current_thread() is threading.main_thread()
    if main and not _handing and hasattr(signal, "pthread_sigmask"):
        _handing.append(_Handing())


def keep_signals() -> int | None:
    """Signals go to this process again; the number of the first that came meanwhile."""
    if not _handing:
        return None
    handing = _handing.pop()
    handing.end()
    return handing.received


def listen_as_job(stopped: StoppedJobs) -> None:
    """Take the signals that were held back since before this process began, if they were."""
    if not hasattr(signal, "pthread_sigmask"):
        return
    held = signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(_SIGNALS)
    if threading.current_thread() is threading.main_thread() and held:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, stopped.note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
