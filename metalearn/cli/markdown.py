"""Tables in the form of Markdown, which reads well on a screen and in a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["markdown"]


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is of texts, and whose others are of numbers."""
    rule = "|---|" + "---:|" * (len(heads) - 1)
    return "\n".join([_line(heads), rule, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
