"""How long a download may wait.

Axes: none.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Iterator

__all__ = ["DOWNLOAD_FAULTS", "download_timeout"]

DOWNLOAD_FAULTS = (OSError, RuntimeError, ValueError, http.client.HTTPException)
"""What a download that fails raises, torchvision's included."""

_SECONDS = 30.0  # without an answer before a download is given up


@contextlib.contextmanager
def download_timeout() -> Iterator[None]:
    """A network that swallows everything must not hang the run; torchvision sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
