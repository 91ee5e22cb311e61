"""What a test gives back: numbers that say by themselves how they are written, shown, compared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from metalearn.percent import NAN_MEANS

__all__ = ["Report", "report_text"]

_UNKNOWN = re.compile(r"\bNaN\b")


class Report(Protocol):
    """Scores of a finished run on a split.

    One that has a method ``meaning()`` says by it, in a sentence, what its numbers mean.
    """

    def as_json(self) -> dict[str, Any]:
        """All numbers, in JSON's own types."""

    def headline(self) -> dict[str, float]:
        """The few numbers by which runs are compared, named as ``"test/accuracy"``."""

    def member_headlines(self) -> list[dict[str, float]]:
        """The same of each member; empty where there are none."""

    def lines(self, name: str) -> list[str]:
        """The scores in words, under a heading that begins with ``name``."""


def report_text(reports: Mapping[str, Report]) -> str:
    """Reports in words, one after another, each with what it means; NaN is explained once."""
    lines = [line for name, report in reports.items() for line in _with_meaning(name, report)]
    unknown = any(_UNKNOWN.search(line) for line in lines)
    return "\n".join([*lines, *([NAN_MEANS] if unknown else [])])


def _with_meaning(name: str, report: Report) -> list[str]:
    """A report's lines, and what they mean where it says that, ``report.meaning()``."""
    meaning = getattr(report, "meaning", None)
    return [*report.lines(name), *([f"  {meaning()}"] if callable(meaning) else [])]
