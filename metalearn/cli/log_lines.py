"""Lines of a run's log: the time, the kind of what is no ordinary message, the message."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from pathlib import Path

__all__ = ["WARNED", "LogLines", "log_ending"]

WARNED = re.compile(r"\d\d:\d\d:\d\d (?P<sentence>(?:warning|error|critical): .+)")
"""A line of what warns, as `LogLines` writes it."""


class LogLines(logging.Formatter):
    """Formats ``12:00:00 message``, from warnings on ``12:00:00 warning: message``."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line = super().formatMessage(record)
        if record.levelno < logging.WARNING:
            return line
        time, _, message = line.partition(" ")
        return f"{time} {record.levelname.lower()}: {message}"


def log_ending(error: Exception) -> None:
    """Write into the run's log what ends it; the terminal has it from whoever answers the error.

    A disk that takes no line costs that line alone.
    """
    sentence = " ".join(str(error).split())
    words = f"ended: {sentence}" if sentence else f"ended: {type(error).__name__}"
    record = logging.LogRecord("metalearn", logging.ERROR, "", 0, "%s", (words,), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            with suppress(OSError), Path(handler.baseFilename).open("a", encoding="utf-8") as file:
                file.write(f"{handler.format(record)}\n")
