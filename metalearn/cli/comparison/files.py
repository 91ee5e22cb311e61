"""A comparison of runs in files: a table for people and for programs, all numbers, a figure.

Axes: none.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from metalearn.cli.comparison.comparing import Comparison
from metalearn.cli.comparison.rows import Row
from metalearn.cli.comparison.settings import ABSENT, as_typed, printable
from metalearn.cli.comparison.tables import comparison_page
from metalearn.files import replace_file
from metalearn.percent import is_share
from metalearn.tracking import ComparedNumber, comparison_figure, write_json

__all__ = ["write_comparison"]

_MOST_PANELS, _MOST_DRAWN, _MOST_NAMED = 3, 80, 6
"""Of a figure: numbers, rows, settings by which a row is named."""
_LONGEST_LABEL = 240


def write_comparison(folder: Path, name: str, comparison: Comparison) -> str:
    """Write ``<name>.csv``, ``.md``, ``.json`` and ``.png`` into a folder, each whole.

    A figure that cannot be drawn is missing, and takes nothing else along.

    Returns:
        A line that says what is there.

    Raises:
        OSError: what the system refuses, with the file that it refuses.
    """
    paths = [folder / f"{name}.{ending}" for ending in ("csv", "md", "json", "png")]
    table, page, numbers, picture = paths
    for path, text in ((table, _csv(comparison)), (page, comparison_page(comparison))):
        replace_file(path, _writer(text.encode()), make_folder=False)
    write_json(numbers, _as_json(comparison), make_folder=False)
    try:
        drawn = _png(comparison)
    except Exception as error:  # of matplotlib, which may raise anything
        picture.unlink(missing_ok=True)  # of another table
        why = printable(str(error)) or type(error).__name__
        return f"written: {numbers}, .csv and .md; the figure could not be drawn ({why})"
    replace_file(picture, _writer(drawn), make_folder=False)
    return f"written: {numbers}, .csv, .md and .png"


def _writer(content: bytes) -> Callable[[Any], object]:
    return lambda file: file.write(content)


def _csv(comparison: Comparison) -> str:
    """A row each, numbers as they are: accuracies are shares of 1."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    ends = ("", ", 95 % low", ", 95 % high", ", interval over")
    numbers = [f"{name}{end}" for name in comparison.numbers for end in ends]
    writer.writerow(["row", *comparison.settings, "seeds", "state", *numbers, "runs"])
    for place, row in enumerate(comparison.rows, 1):
        cells: list[object] = [place, *(as_typed(value) for value in row.settings.values())]
        cells += [row.seeds, row.state or "finished"]
        for name in comparison.numbers:
            span = row.interval(name)
            cells.append(repr(row.numbers[name].mean) if name in row.numbers else "")
            cells += ["", "", ""] if span is None else [repr(span.low), repr(span.high), span.over]
        writer.writerow([*cells, ", ".join(run.name for run in row.runs)])
    return file.getvalue()


def _as_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "groups": [_group(row) for row in comparison.rows],
        "order": comparison.order,
        "notes": list(comparison.notes),
        "passed_over": dict(comparison.passed_over),
    }


def _group(row: Row) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for name, mean in row.numbers.items():
        numbers[name] = {**mean._asdict(), "values": [run.numbers[name] for run in row.runs]}
        span = row.interval(name) if len(row.runs) == 1 else None
        if span is not None:
            numbers[name]["interval95_of_run"] = span._asdict()
    settings = {name: None if v is ABSENT else v for name, v in row.settings.items()}
    return {
        "settings": settings,
        "without": [name for name, value in row.settings.items() if value is ABSENT],
        "seeds": [run.seed for run in row.runs],
        "runs": [run.name for run in row.runs],
        "state": row.state or "finished",
        "numbers": numbers,
    }


def _png(comparison: Comparison) -> bytes:
    rows = comparison.rows[:_MOST_DRAWN]
    panels = _panels(rows) or ["no number"]
    title = comparison.title
    if len(rows) < len(comparison.rows):
        title += f"; the first {len(rows)} of {len(comparison.rows)} rows"
    figure = comparison_figure(
        [_label(place, row) for place, row in enumerate(rows, 1)],
        {printable(name): [_dot(row, name) for row in rows] for name in panels},
        title=title,
        percent=[printable(name) for name in panels if is_share(name)],
    )
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _panels(rows: Sequence[Row]) -> list[str]:
    """Validation scores and first test numbers, those that most rows have before others."""
    tests = [[name for name in row.numbers if name.startswith("test/")] for row in rows]
    found = [row.score for row in rows if row.score] + [n for names in tests for n in names[:1]]
    several = dict.fromkeys(found)
    counts = {name: sum(name in row.numbers for row in rows) for name in several}
    chosen = sorted(several, key=lambda name: -counts[name])[:_MOST_PANELS]
    return sorted(chosen, key=found.index)


def _label(place: int, row: Row) -> str:
    settings = [f"{n}={as_typed(v)}" for n, v in row.settings.items() if v is not ABSENT]
    seeds = f"seed{'s' * (len(row.runs) > 1)} {row.seeds}"
    named = settings if 0 < len(settings) <= _MOST_NAMED else [row.folders]
    text = printable(f"{place}  {', '.join([*named, seeds, *([row.state] if row.state else [])])}")
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"


def _dot(row: Row, name: str) -> ComparedNumber | None:
    if name not in row.numbers:
        return None
    span, mean = row.interval(name), row.numbers[name].mean
    values = [run.numbers[name] for run in row.runs]
    if span is None:
        return ComparedNumber(mean, math.nan, math.nan, "seeds" if len(values) > 1 else "", values)
    over = "seeds" if span.over == "seeds" else "tests"
    return ComparedNumber(mean, span.low, span.high, over, values)
