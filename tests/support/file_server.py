"""A web server on this machine whose faults a test chooses."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class FileServer:
    """What one address gives, and what was asked of it.

    Attributes:
        content: the file.
        breaks: after how many bytes answers break off, one an answer; then they are whole.
        ranges: whether parts are given (206).
        tag: ETag; None for none.
        heeds_tag: whether ``If-Range`` of another tag gives the whole file.
        shift: added to where a part begins, as a broken server would.
        status: an error to answer with.
        sized: whether the answer says how long it is.
        asked: headers Range and If-Range of each request.
    """

    content: bytes
    breaks: list[int] = field(default_factory=list)
    ranges: bool = True
    tag: str | None = '"one"'
    heeds_tag: bool = True
    shift: int = 0
    status: int = 200
    sized: bool = True
    url: str = ""
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        span, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
        self.asked.append((span, condition))
        if self.status != 200:
            handler.send_error(self.status)
            return
        start = int(span.removeprefix("bytes=").rstrip("-")) if span and self.ranges else 0
        if self.heeds_tag and condition not in (None, self.tag):
            start = 0
        if start > len(self.content):
            handler.send_error(416)
            return
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        if start:
            whole = len(self.content)
            span = f"bytes {start + self.shift}-{whole - 1}/{whole}"
            handler.send_header("Content-Range", span)
        if self.sized:
            handler.send_header("Content-Length", str(len(body)))
        if self.tag is not None:
            handler.send_header("ETag", self.tag)
        handler.end_headers()
        handler.wfile.write(body[: self.breaks.pop(0)] if self.breaks else body)


@contextmanager
def served(content: bytes) -> Iterator[FileServer]:
    """A server of one file, at ``url``."""
    server = FileServer(content)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.url = f"http://127.0.0.1:{running.server_address[1]}/file"
        yield server
        running.shutdown()
        thread.join()
