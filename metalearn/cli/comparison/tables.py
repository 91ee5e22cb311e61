"""A comparison of runs, to be read: a table in words or in Markdown.

Axes: none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from metalearn.cli.comparison.certainty import certainty
from metalearn.cli.comparison.comparing import Comparison
from metalearn.cli.comparison.rows import Row
from metalearn.cli.comparison.runs import Span
from metalearn.cli.comparison.settings import as_typed, printable
from metalearn.cli.markdown import markdown
from metalearn.percent import decimals, is_share, percent

__all__ = ["ComparisonCells", "comparison_cells", "comparison_lines", "comparison_page"]

_BLANK = "–"
_MOST_SETTINGS = 16  # columns of settings that are shown; the files for machines have all
_FILES = "which the files .csv and .json have"
_OVER = ("seeds", "test tasks", "test samples")


class _Column(NamedTuple):
    head: str
    cells: Sequence[str]
    right: bool = False
    joined: bool = False
    """Whether it says more of the column before it, and is not parted from that."""


class ComparisonCells(NamedTuple):
    """A whole table in words."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[bool]
    """Of each column, whether it stands to the right."""
    sentences: Sequence[str]
    """What has to be said of it."""


def comparison_lines(comparison: Comparison, width: int) -> list[str]:
    """A table in words; columns that do not fit beside the others stand below them.

    Args:
        comparison: of runs.
        width: of a line, in characters.
    """
    lines = [comparison.title]
    number, *rest = _columns(comparison)
    for block in _blocks(number, rest, width):
        lines += ["", *_aligned(block)]
    return [*lines, "", *_sentences(comparison)]


def _sentences(comparison: Comparison, elsewhere: str = _FILES) -> list[str]:
    found = [comparison.order, *certainty(comparison.rows, comparison.order), *comparison.notes]
    more = comparison.settings[_MOST_SETTINGS:]
    if more:
        found.append(f"{len(more)} more settings differ, {elsewhere}.")
    found += [f"Passed over: {name}: {why}" for name, why in comparison.passed_over.items()]
    return [printable(text) for text in found]


def _columns(comparison: Comparison) -> Iterator[_Column]:
    rows = comparison.rows
    yield _Column("#", [str(place) for place in range(1, len(rows) + 1)], right=True)
    for name in comparison.settings[:_MOST_SETTINGS]:
        cells = [as_typed(row.settings[name]) or _BLANK for row in rows]
        yield _Column(printable(name), cells, right=all(map(_is_number, cells)))
    yield _Column("seeds", [row.seeds for row in rows])
    if any(row.state for row in rows):
        yield _Column("state", [row.state or "finished" for row in rows])
    for name in comparison.numbers:
        yield _Column(printable(name), [_value(row, name) for row in rows], right=True)
        for over in _OVER:
            ends = [row.interval(name) for row in rows]
            if any(span is not None and span.over == over for span in ends):
                cells = [
                    _span(span, row.numbers[name].mean, name)
                    if span is not None and span.over == over
                    else _BLANK
                    for row, span in zip(rows, ends)
                ]
                yield _Column(f"95 % over {over}", cells, right=True, joined=True)
    yield _Column("runs", [printable(row.folders) for row in rows])


def _shown(value: float, name: str) -> str:
    if not math.isfinite(value):
        return decimals(value)
    if is_share(name):
        return percent(value)
    if name.endswith("/step"):
        return f"{value:.0f}"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def _value(row: Row, name: str) -> str:
    return _shown(row.numbers[name].mean, name) if name in row.numbers else _BLANK


def _span(span: Span, mean: float, name: str) -> str:
    below, above = mean - span.low, span.high - mean
    if math.isclose(below, above, rel_tol=1e-6, abs_tol=1e-12):
        return f"± {_shown(above, name)}"
    return f"{_shown(span.low, name)} to {_shown(span.high, name)}"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell == _BLANK
    return True


def _blocks(number: _Column, rest: Sequence[_Column], width: int) -> list[list[_Column]]:
    """Columns that fit beside each other, each block with the number of its rows."""
    parts: list[list[_Column]] = []
    for column in rest:
        if column.joined:
            parts[-1].append(column)
        else:
            parts.append([column])
    blocks, left = [[number]], width - _width(number)
    for part in parts:
        needed = sum(2 + _width(column) for column in part)
        if needed > left and len(blocks[-1]) > 1:
            blocks.append([number])
            left = width - _width(number)
        blocks[-1] += part
        left -= needed
    return blocks


def _width(column: _Column) -> int:
    return max(map(len, [column.head, *column.cells]))


def _aligned(columns: Sequence[_Column]) -> list[str]:
    padded = []
    for column in columns:
        width, cells = _width(column), [column.head, *column.cells]
        padded.append([c.rjust(width) if column.right else c.ljust(width) for c in cells])
    return ["  ".join(cells).rstrip() for cells in zip(*padded)]


def comparison_page(comparison: Comparison) -> str:
    """A table in Markdown, and what has to be said of it."""
    heads, rows, _, sentences = comparison_cells(comparison)
    table = markdown(list(map(_escaped, heads)), [tuple(map(_escaped, row)) for row in rows])
    notes = "\n".join(f"- {_escaped(text)}" for text in sentences)
    return f"{comparison.title}\n\n{table}\n\n{notes}\n"


def comparison_cells(comparison: Comparison, *, elsewhere: str = _FILES) -> ComparisonCells:
    """The table of a comparison, each head whole: an interval's says what it is of.

    Args:
        comparison: of runs.
        elsewhere: where settings stand that the table has no room for.
    """
    heads, above, columns = [], "", list(_columns(comparison))
    for column in columns:
        above = above if column.joined else column.head
        heads.append(f"{above}, {column.head}" if column.joined else column.head)
    rows = list(zip(*(column.cells for column in columns)))
    return ComparisonCells(
        heads, rows, [c.right for c in columns], _sentences(comparison, elsewhere)
    )


def _escaped(text: str) -> str:
    for mark in ("\\", "|", "<", "`", "*", "_", "[", "$"):
        text = text.replace(mark, f"\\{mark}")
    return text
