"""One HTML page of several runs side by side: their table, their curves, what is known of each.

Axes: none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

from metalearn.cli.comparison.comparing import Comparison
from metalearn.cli.comparison.rows import Row
from metalearn.cli.comparison.runs import ComparedRun
from metalearn.cli.comparison.settings import ABSENT, as_typed, printable
from metalearn.cli.comparison.tables import comparison_cells
from metalearn.cli.reports.page import FIRST_CURVES, LINEAR_CURVES
from metalearn.cli.reports.story import RunStory
from metalearn.cli.reports.tables import INTERVALS, found_tables, spaced
from metalearn.pages import chart, counted, escaped, facts_table, table, warnings_of, whole_page
from metalearn.percent import is_share
from metalearn.tracking.overlaid_curves import MOST_LINES, OverlaidRow, overlaid_figure
from metalearn.tracking.run_curves import Curve, curves_of

__all__ = ["page_of_runs"]

_MOST_SEEDS = 5  # of a row, whose curves are drawn
_MOST_PANELS = 12
_MOST_SECTIONS = 60  # rows that have one
_MOST_NAMED = 4  # settings that name a line
_PARTS = {"validation": ", validation", "train": ", training", "": ""}


def page_of_runs(
    title: str, comparison: Comparison, story_of: Callable[[ComparedRun], RunStory]
) -> str:
    """The text of a page of several runs.

    Args:
        title: what they are of.
        comparison: of them, whose order and notes are those of the page.
        story_of: reads what the folder of one of its runs tells.

    Raises:
        DataError: settings or results of one that have become unreadable since.
    """
    drawn = _Drawn(comparison)
    sections = [
        "".join(_section(place, row, drawn, story_of))
        for place, row in enumerate(comparison.rows[:_MOST_SECTIONS])
    ]
    parts = [
        f"<h1>{escaped(title)}</h1>",
        *_table(comparison),
        *drawn.charts(),
        *_each(comparison, sections),
    ]
    return whole_page(title, parts)


def _table(comparison: Comparison) -> Iterator[str]:
    heads, rows, numbers, sentences = comparison_cells(
        comparison, elsewhere="which stand with each row below"
    )
    yield f"<p>{escaped(comparison.title)}.</p>"
    yield table(heads, rows, numbers=numbers, links=_anchor)
    yield from (f'<p class="soft">{escaped(text)}</p>' for text in sentences)


def _anchor(cell: str) -> str:
    return f"row-{cell}"


def _name(place: int, row: Row) -> str:
    """Of a row, as curves and sections have it."""
    own = [(n, v) for n, v in row.settings.items() if v is not ABSENT]
    words = [f"{n}={as_typed(v)}" for n, v in own[:_MOST_NAMED]] or [row.folders]
    seeds = f"seed{'s' * (len(row.runs) > 1)} {row.seeds}"
    return printable(f"{place + 1}: {', '.join([*words, seeds])}")


def _section(
    place: int, row: Row, drawn: _Drawn, story_of: Callable[[ComparedRun], RunStory]
) -> Iterator[str]:
    """What is known of the runs of a row; their curves go where they are drawn."""
    yield f'<h3 id="{_anchor(str(place + 1))}">{escaped(_name(place, row))}</h3>'
    if row.settings:
        yield facts_table({n: as_typed(v) for n, v in row.settings.items() if v is not ABSENT})
    for number, run in enumerate(row.runs):
        story = story_of(run)
        if place < MOST_LINES and number < _MOST_SEEDS:
            drawn.add(place, curves_of(story.records))
        yield f"<h4><code>{escaped(run.name)}</code>, seed {escaped(run.seed)}</h4>"
        if run.state is not None:
            yield from warnings_of([f"{run.state}; there are no results"])
        yield from warnings_of(story.warnings)
        tests = story.results.get("test") or {}
        inner = "".join(
            "".join([f"<h4>{escaped(spaced(name))}</h4>", *found_tables(report)])
            for name, report in tests.items()
        )
        if inner:
            yield f"<details><summary>All test scores</summary>{inner}</details>"


def _each(comparison: Comparison, sections: Sequence[str]) -> Iterator[str]:
    yield "<h2>Each row</h2>"
    if len(sections) < len(comparison.rows):
        yield (
            f'<p class="soft">The first {len(sections)} of {len(comparison.rows)} rows have a '
            "section.</p>"
        )
    yield f'<p class="soft">{escaped(INTERVALS)}</p>'
    yield from (f"<section>{section}</section>" for section in sections)


class _Drawn:
    """The curves of the rows that are drawn."""

    def __init__(self, comparison: Comparison) -> None:
        self._rows = comparison.rows[:MOST_LINES]
        self._left_out = len(comparison.rows) - len(self._rows)
        self._by_place: dict[int, list[Mapping[str, Mapping[str, Curve]]]] = {}

    def add(self, place: int, curves: Mapping[str, Mapping[str, Curve]]) -> None:
        """Of a run of a row."""
        self._by_place.setdefault(place, []).append(curves)

    def charts(self) -> Iterator[str]:
        """A panel for each number that matters first."""
        panels = list(islice(self._panels(), _MOST_PANELS))
        if not panels:
            return
        yield "<h2>How they went</h2>"
        yield f'<p class="soft">{escaped(self._explained())}</p>'
        yield '<div class="charts">'
        for name, part in panels:
            words = f"{spaced(name)}{_PARTS.get(part, '')}"
            rows = []
            for place, runs in sorted(self._by_place.items()):
                lines = [curves[name][part] for curves in runs if part in curves.get(name, {})]
                if lines:
                    rows.append(OverlaidRow(place, _name(place, self._rows[place]), lines))
            figure = overlaid_figure(
                words, rows, percent=is_share(name), linear=name in LINEAR_CURVES
            )
            yield chart(figure, f"{words} of {counted(len(rows), 'row')} over the steps")
        yield "</div>"

    def _panels(self) -> Iterator[tuple[str, str]]:
        there = dict.fromkeys(n for runs in self._by_place.values() for c in runs for n in c)
        scores = [
            n.partition("/")[2] for row in self._rows for n in row.numbers if n.startswith("best/")
        ]
        wanted = [name for name in (*scores, *FIRST_CURVES) if name in there] or list(there)[:4]
        for name in dict.fromkeys(wanted):
            for part in _PARTS:
                if any(part in c.get(name, {}) for runs in self._by_place.values() for c in runs):
                    yield name, part

    def _explained(self) -> str:
        text = (
            "A line is a run, and its number that of its row in the table; seeds of a row look "
            "alike. Bands around lines, and all other curves, are on the page of each run."
        )
        if self._left_out:
            text += (
                f" Drawn are the first {len(self._rows)} of {len(self._rows) + self._left_out} "
                "rows, in the order of the table: more cannot be told apart."
            )
        if any(len(row.runs) > _MOST_SEEDS for row in self._rows):
            text += f" Of a row's seeds the first {_MOST_SEEDS} are drawn."
        return text
