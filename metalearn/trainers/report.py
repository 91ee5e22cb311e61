"""What a test gives back: numbers that say by themselves how they are written, shown, compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["Report", "report_text"]


class Report(Protocol):
    """Scores of a finished run on a split."""

    def as_json(self) -> dict[str, Any]:
        """All numbers, in JSON's own types."""

    def headline(self) -> dict[str, float]:
        """The few numbers by which runs are compared, named as ``"test/accuracy"``."""

    def member_headlines(self) -> list[dict[str, float]]:
        """The same of each member; empty where there are none."""

    def lines(self, name: str) -> list[str]:
        """The scores in words, under a heading that begins with ``name``."""


def report_text(reports: Mapping[str, Report]) -> str:
    """Reports in words, one after another."""
    return "\n".join(line for name, report in reports.items() for line in report.lines(name))
