"""Lines of a run's log: the time, the kind of what is no ordinary message, the message."""

from __future__ import annotations

import logging
import re

__all__ = ["WARNED", "LogLines"]

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
