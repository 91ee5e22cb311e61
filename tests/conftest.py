"""What holds for every test, whatever started them."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _hangups_are_heard() -> Iterator[None]:
    """As in a terminal: what runs under nohup ignores them, and so would all that it starts."""
    number = getattr(signal, "SIGHUP", None)  # none on Windows
    if number is None or signal.getsignal(number) != signal.SIG_IGN:
        yield
        return
    signal.signal(number, signal.SIG_DFL)
    yield
    signal.signal(number, signal.SIG_IGN)
