"""What ``diagnose`` found, on the page of its run: each block with what it means.

Axes: none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metalearn.cli.reports.tables import found_tables, shown, spaced
from metalearn.pages import counted, escaped, table
from metalearn.trainers.diagnostics import offline_diagnostics

__all__ = ["diagnosis_part"]

_SOURCES = {
    "network": "The network",
    "members": "Members",
    "initial": "At the initial parameters",
    "adapted": "Adapted to each task",
}
_MOST_LAYERS, _MOST_PAIRS, _MOST_LEFT_OUT = 100, 10, 40


def diagnosis_part(found: Mapping[str, Any]) -> Iterator[str]:
    """Every block of ``diagnosis-<split>.json``, and what was left out; what is none is passed."""
    said: set[str] = set()
    for source, blocks in _objects(found.get("findings")):
        parts = [part for name, block in _objects(blocks) for part in _block(name, block, said)]
        if parts:
            yield f"<h3>{escaped(_SOURCES.get(source, spaced(source)))}</h3>"
            yield from parts
    yield from _left_out(found.get("left_out"))


def _objects(found: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, inner in (found if isinstance(found, Mapping) else {}).items():
        if isinstance(inner, Mapping):
            yield name, inner


def _block(name: str, block: Mapping[str, Any], said: set[str]) -> Iterator[str]:
    """One diagnostic: its name, how it is read if that is not said yet, its numbers, its layers."""
    kind = offline_diagnostics().get(name)
    apart = {"by_layer", "matrix"} | {"density"} & {name}  # tables of another form, or figures
    parts = [
        *_numbers({n: v for n, v in block.items() if n not in apart}),
        *_pairs(block.get("matrix")),
        *_layers(block.get("by_layer")),
    ]
    if not parts:
        return
    yield f"<h4>{escaped(spaced(name))}</h4>"
    if kind is not None and kind.reading and name not in said:
        said.add(name)
        yield f'<p class="soft">{escaped(kind.reading)}</p>'
    yield from parts


def _numbers(block: Mapping[str, Any]) -> Iterator[str]:
    """Values of one, or the middle and ends of those of several members or tasks."""
    known = {name: _finite(value) for name, value in block.items()}
    rows = {name: values for name, values in known.items() if values is not None}
    if any(len(values) > 1 for values in rows.values()):
        ends = (statistics.median_low, min, max)
        body = [[spaced(n), *_ends(n, v, ends, block[n])] for n, v in rows.items()]
        yield table(["", "median", "lowest", "highest"], body)
    elif rows:
        yield table(["", "value"], [[spaced(n), _one(n, block[n])] for n in rows])
    yield from found_tables({n: v for n, v in block.items() if n not in rows}, depth=1)


def _ends(name: str, values: Sequence[float], ends: Sequence[Any], raw: Any) -> list[str]:
    if not isinstance(raw, list):
        return [_one(name, raw), "", ""]
    return [shown(name, end(values)) for end in ends] if values else ["–"] * 3


def _one(name: str, value: Any) -> str:
    """A number as a cell has it, whether alone or the only one of its list."""
    return shown(name, value[0] if isinstance(value, list) else value)


def _finite(value: Any) -> list[float] | None:
    """Finite numbers of a value; None where it is neither a number nor a list of these."""
    values = value if isinstance(value, list) and value else [value]
    if any(isinstance(v, bool) or not isinstance(v, int | float | None) for v in values):
        return None
    return [float(v) for v in values if v is not None and math.isfinite(v)]


def _pairs(matrix: Any) -> Iterator[str]:
    """Cosines of every pair, where a table can hold them."""
    rows = matrix if isinstance(matrix, list) else []
    if not 1 < len(rows) <= _MOST_PAIRS or any(_finite(row) is None for row in rows):
        return
    if any(not isinstance(row, list) or len(row) != len(rows) for row in rows):
        return
    heads = ["", *(str(n) for n in range(len(rows)))]
    body = [[str(n), *(_two_digits(value) for value in row)] for n, row in enumerate(rows)]
    yield f"<details><summary>Every pair</summary>{table(heads, body)}</details>"


def _two_digits(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _layers(by_layer: Any) -> Iterator[str]:
    """A row for each layer, a column for each quantity."""
    columns = dict(_objects(by_layer))
    names = list(dict.fromkeys(layer for column in columns.values() for layer in column))
    if not names:
        return
    body = [
        [layer, *(shown(n, column.get(layer)) for n, column in columns.items())]
        for layer in names[:_MOST_LAYERS]
    ]
    inner = table(["layer", *map(spaced, columns)], body)
    yield f"<details><summary>By layer, {counted(len(names), 'layer')}</summary>{inner}</details>"


def _left_out(reasons: Any) -> Iterator[str]:
    """What could not be computed, and why: each reason once."""
    of_reason: dict[str, list[str]] = {}
    for name, reason in (reasons if isinstance(reasons, Mapping) else {}).items():
        of_reason.setdefault(str(reason), []).append(spaced(name))
    for reason, names in list(of_reason.items())[:_MOST_LEFT_OUT]:
        yield f'<p class="soft">Left out: {escaped(", ".join(names))}. {escaped(reason)}.</p>'
