"""Requests to stop: noted once, then the usual; nothing left behind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from metalearn.trainers.loop.stop_signal import Stopped, StopRequest

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _handlers() -> list[Any]:
    return [signal.getsignal(number) for number in ALL]


def _send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _handlers_stay() -> Iterator[None]:
    before = _handlers()
    yield
    after = _handlers()
    for number, handler in zip(ALL, before):
        signal.signal(number, handler)
    assert after == before


def test_nothing_is_received_without_a_signal() -> None:
    with StopRequest() as stop:
        assert stop.received is None
    assert stop.received is None


@pytest.mark.parametrize("number", ALL)
def test_the_first_signal_is_noted(number: int) -> None:
    with StopRequest() as stop:
        _send(number)
        assert stop.received == number
    assert stop.received == number


@pytest.mark.parametrize("first", ALL)
def test_a_second_interrupt_is_not_held_back(first: int) -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        _send(first)
        assert stop.received == first
        _send(signal.SIGINT)


def test_terminating_twice_stays_a_request() -> None:
    with StopRequest() as stop:
        for _ in range(3):
            _send(signal.SIGTERM)
        assert stop.received == signal.SIGTERM


def test_the_handlers_of_before_come_back_after_an_error() -> None:
    caught: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    try:
        with pytest.raises(ValueError, match="in the middle"), StopRequest():
            raise ValueError("in the middle")
        _send(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught == [signal.SIGTERM]


def test_requests_nest() -> None:
    with StopRequest() as outer:
        with StopRequest() as inner:
            _send(signal.SIGTERM)
        assert (outer.received, inner.received) == (None, signal.SIGTERM)
        _send(signal.SIGINT)
    assert outer.received == signal.SIGINT


def test_another_thread_catches_nothing() -> None:
    seen: list[Any] = []
    before = _handlers()

    def work() -> None:
        with StopRequest() as stop:
            seen.append((_handlers() == before, stop.received))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(True, None)]


def test_a_hangup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            _send(signal.SIGHUP)
            assert stop.received is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("first", ALL)
def test_what_belongs_together_is_done_before_a_second_interrupt(first: int) -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        _send(first)
        with stop.whole():
            with stop.whole():
                _send(signal.SIGINT)
                done.append("update")
            done.append("count")
        done.append("more")
    assert done == ["update", "count"]


def test_a_check_breaks_off_what_errors_do_not() -> None:
    with StopRequest() as stop:
        stop.check()
        _send(signal.SIGTERM)
        with pytest.raises(Stopped):
            stop.check()
    assert not issubclass(Stopped, Exception)
