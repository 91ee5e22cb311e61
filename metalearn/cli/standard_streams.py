"""Standard output and error that may close, or whose disk may be full, while a command runs."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["numbered_streams", "tolerant_streams"]

_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # a reader, a terminal, a descriptor


@contextmanager
def tolerant_streams() -> Iterator[None]:
    """What cannot be printed or logged inside is lost, and nothing else: ``train.py | head -1``.

    A stream whose reader is gone leads nowhere from then on, for the whole process: the
    interpreter flushes it once more when it ends.
    """
    _fill_descriptors()
    streams, reporting = (sys.stdout, sys.stderr), logging.raiseExceptions
    lasting = [None if stream is None else _Lasting(stream) for stream in streams]
    sys.stdout, sys.stderr = lasting  # type: ignore[assignment]
    logging.raiseExceptions = False  # a record that finds no room would bring a traceback
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        logging.raiseExceptions = reporting
        for stream in lasting:
            if stream is not None and not stream.flush():
                stream.give_up()


@contextmanager
def numbered_streams(number: int) -> Iterator[None]:
    """What is printed inside comes in whole lines that begin with a number, as those of one job."""
    streams = (sys.stdout, sys.stderr)
    numbered = [None if stream is None else _Numbered(stream, number) for stream in streams]
    sys.stdout, sys.stderr = numbered  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        for stream in numbered:
            if stream is not None:
                stream.end()


def _fill_descriptors() -> None:
    """Standard streams that were closed from the start lead nowhere.

    A file of ours would else be opened in their place, and get what C code prints.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free


class _Lasting:
    """A stream whose `write` and `flush` do not raise where it cannot take anything."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> bool:
        return self._try(self._stream.flush)

    def give_up(self) -> None:
        """Let the stream lead nowhere, with what it still holds."""
        with suppress(OSError, ValueError):  # it may have no descriptor
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def _try(self, call: Any, *arguments: Any) -> bool:
        try:
            call(*arguments)
        except OSError as error:
            if error.errno in _GONE:
                self.give_up()
            return False
        except ValueError:
            if not self._stream.closed:
                raise
            return False
        return True


def _last_drawn(line: str) -> str:
    """What a terminal would show of a line that a bar has been drawn over, again and again."""
    kept = line.rstrip("\r")
    return kept.rpartition("\r")[2] + line[len(kept) :][-1:]


class _Numbered:
    """A stream that takes whole lines, for a stream that others write to as well."""

    def __init__(self, stream: Any, number: int) -> None:
        self._stream, self._number, self._begun = stream, number, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        return False  # a bar would be drawn over the lines of others

    def write(self, text: str) -> int:
        *lines, begun = (self._begun + text).split("\n")
        self._begun = _last_drawn(begun)
        if lines:
            shown = [_last_drawn(line.rstrip("\r")) for line in lines]
            self._stream.write("".join(f"[{self._number}] {line}\n" for line in shown))
            self._stream.flush()
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def end(self) -> None:
        if self._begun:
            with suppress(OSError, ValueError):
                self.write("\n")
