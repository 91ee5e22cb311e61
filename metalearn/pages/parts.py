"""Parts that all pages share: the frame, warnings, where something comes from, numbers in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from metalearn.pages.markup import escaped, facts_table
from metalearn.pages.style import STYLE
from metalearn.tracking.provenance import plain

__all__ = [
    "counted",
    "number",
    "seconds_in_words",
    "sources",
    "warnings_of",
    "whole_page",
    "with_interval",
]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def whole_page(title: str, parts: Iterable[str]) -> str:
    """A page of its own: no other file, no network, no scripts."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def warnings_of(warnings: Iterable[str]) -> Iterator[str]:
    """Why some of it should not be trusted."""
    for warning in warnings:
        yield f'<p class="warning" role="alert"><b>Warning:</b> {escaped(warning)}</p>'


def sources(settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> Iterator[str]:
    """Settings and provenance, where there are some."""
    for heading, facts in (("Settings", settings), ("Provenance", provenance)):
        if facts:
            known = plain(facts)
            assert isinstance(known, dict)
            yield f"<h2>{heading}</h2>{facts_table(known)}"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``1 task``, ``1,000 tasks``."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def with_interval(mean: float, half: float) -> str:
    """``0.71 ± 0.05``."""
    return number(mean) + (f" ± {half:.2f}" if math.isfinite(half) else "")


def number(value: float) -> str:
    """Two digits; a dash for what is not known."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−") if math.isfinite(value) else "–"


def seconds_in_words(seconds: float | None) -> str:
    """A few digits; a dash for what is not known."""
    if seconds is None:
        return "–"
    return f"{seconds:.2g}" if seconds < 10 else f"{seconds:,.0f}"
