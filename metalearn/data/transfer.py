"""The bytes of a remote file into a partial one, by as many requests as it takes.

Axes: none.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from metalearn.errors import DataError
from metalearn.files import failures_named, read_regular, replace_file
from metalearn.stretches import stretch

__all__ = ["SECONDS", "RemoteFile", "Transfer", "digest_of", "remove_part"]

SECONDS = 30.0
"""Without an answer before a download is given up."""

_PIECE = 2**18  # bytes that are read at once
_MILLION = 10**6
_BREAKS = 5  # connections that may end early, each having brought something
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """A file that an address gives, and what it has to be.

    Attributes:
        url: an address of http or https.
        checksum: ``"md5:…"`` or ``"sha256:…"``, in hexadecimal digits.
        largest: bytes of it at most.
    """

    url: str
    checksum: str
    largest: int


class Transfer:
    """The bytes of a remote file into an open ``.part``, by as many requests as it takes."""

    def __init__(self, remote: RemoteFile, file: IO[bytes], part: Path) -> None:
        self.remote, self.file, self.part = remote, file, part
        self.state = _read_state(part, remote.url)

    def run(self) -> None:
        """Ask until the file is whole and its checksum fits."""
        if self.state is None:
            self._start_over()
        for _ in range(2):  # a resumed file may be made of two; one from the start is not
            resumed = self.file.tell() > 0
            self._complete()
            self.file.flush()
            found = digest_of(self.remote, self.part)
            if found == self.remote.checksum:
                return
            self._start_over()
            if not resumed:
                break
        raise DataError(
            f"{self.remote.url}: the checksum of what arrived is {found}, that of the file that is "
            f"meant {self.remote.checksum}; nothing of it is kept"
        )

    def _complete(self) -> None:
        """Ask for the rest until all is there."""
        for attempt in range(_BREAKS + 1):
            begun = self.file.tell()
            if begun and self.state and self.state.get("size") == begun:
                return
            try:
                if self._request(begun):
                    return
            except (OSError, http.client.HTTPException) as error:
                self._give_up_unless(self.file.tell() > begun and attempt < _BREAKS, error)

    def _request(self, begun: int) -> bool:
        """One request; whether it brought all that was missing."""
        request = urllib.request.Request(self.remote.url, headers=self._headers(begun))
        try:
            answer = urllib.request.urlopen(request, timeout=SECONDS)
        except urllib.error.HTTPError as error:
            if error.code == 416 and begun:  # the file has become shorter
                self._start_over()
                return False
            raise
        with answer:
            size = _whole_size(answer)
            if not self._goes_on(answer, begun, size):
                return False
            self._check_size(size or 0)
            _log.info("downloading %s (%s bytes, from %d)", self.remote.url, size, self.file.tell())
            self._write_state(answer, size)
            self._receive(answer, (size or 0) - self.file.tell())
        there = self.file.tell()
        if size is not None and there < size:
            raise OSError(f"the connection ended after {there} of {size} bytes")
        return True

    def _receive(self, answer: Any, missing: int) -> None:
        """Write what comes, and tell of it in millions of bytes, where it is known how many."""
        begun, told = self.file.tell(), 0
        with stretch(f"downloading {self.part.stem}", missing // _MILLION, "MB") as tell:
            while piece := answer.read(_PIECE):
                with failures_named(self.part):
                    self.file.write(piece)
                self._check_size(self.file.tell())
                come = (self.file.tell() - begun) // _MILLION
                tell(come - told)
                told = come

    def _headers(self, begun: int) -> dict[str, str]:
        if not begun:
            return {}
        validator = (self.state or {}).get("validator")
        return {"Range": f"bytes={begun}-"} | ({"If-Range": validator} if validator else {})

    def _goes_on(self, answer: Any, begun: int, size: int | None) -> bool:
        """Whether the answer's bytes belong behind those that are there, or replace them."""
        if answer.status != 206:  # no parts, or another file
            self._start_over()
            return True
        known = (self.state or {}).get("size")
        fits = answer.headers.get("Content-Range", "").startswith(f"bytes {begun}-")
        if fits and (known is None or size == known):
            return True
        self._start_over()
        return False

    def _check_size(self, size: int) -> None:
        if size > self.remote.largest:
            self._start_over()
            raise DataError(
                f"{self.remote.url}: {size} bytes or more; at most {self.remote.largest} are taken"
            )

    def _write_state(self, answer: Any, size: int | None) -> None:
        tag = answer.headers.get("ETag", "")
        validator = answer.headers.get("Last-Modified") if tag[:1] != '"' else tag
        self.state = {"url": self.remote.url, "size": size, "validator": validator}
        text = json.dumps(self.state).encode()
        replace_file(_state_path(self.part), lambda file: file.write(text))

    def _start_over(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.state = None

    def _give_up_unless(self, goes_on: bool, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno is not None and error.filename:
            raise error  # of the disk
        bare = not isinstance(error, urllib.error.HTTPError)  # "404" stands in its text alone
        reason = _line((bare and getattr(error, "reason", None)) or error)
        there = self.file.tell()
        if not goes_on:
            kept = f"; {there} bytes are kept, and the next try goes on from there" if there else ""
            raise DataError(f"{self.remote.url}: {reason}{kept}") from error
        _log.warning("%s: %s; the rest is asked for", self.remote.url, reason)


def _whole_size(answer: Any) -> int | None:
    """Bytes of the whole file, of which an answer may have a part."""
    if answer.status == 206:
        size = answer.headers.get("Content-Range", "").partition("/")[2]
    else:
        size = answer.headers.get("Content-Length", "")
    return int(size) if size.isdecimal() else None


def _line(reason: object) -> str:
    return " ".join(str(reason).split()) or type(reason).__name__


def _state_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def remove_part(part: Path) -> None:
    """Remove a partial file and what is known of it."""
    for path in (part, _state_path(part)):
        path.unlink(missing_ok=True)


def _read_state(part: Path, url: str) -> dict[str, Any] | None:
    """What is known of a partial file; None where nothing is, or it is of another address."""
    try:
        state = json.loads(read_regular(_state_path(part), 2**16))
    except (OSError, ValueError):
        return None
    fits = isinstance(state, dict) and state.get("url") == url
    kinds = (("size", int), ("validator", str))
    fits = fits and all(state.get(key) is None or type(state[key]) is kind for key, kind in kinds)
    return state if fits else None


def digest_of(remote: RemoteFile, path: Path) -> str:
    """The checksum of a file, of the kind that the remote one has."""
    kind = remote.checksum.partition(":")[0]
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return f"{kind}:{digest.hexdigest()}"
