"""What a study gave of a seed, kept as a file, and the table of several.

Axes: S seeds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metalearn.errors import DataError
from metalearn.evaluation.seeds import mean_over_seeds
from metalearn.files import read_regular
from metalearn.schema import Misfit, map_of, mapping, nothing, number, text, whole
from metalearn.studies.registry import STUDIES, Study

__all__ = ["StudyResult", "read_results", "study_table"]

_LARGEST = 2**20  # bytes of a file


@dataclass(frozen=True)
class StudyResult:
    """One seed of a study."""

    study: str
    seed: int
    rows: dict[str, dict[str, float]]
    """Numbers by row and column; ``seconds`` are of the processor."""
    chosen: dict[str, str]
    """By row, what validation chose."""
    revision: str
    """Of the project."""
    machine: str

    def as_json(self) -> dict[str, Any]:
        """Plain, for a file."""
        return asdict(self)


def read_results(folder: Path) -> dict[str, list[StudyResult]]:
    """Of each study, what a folder keeps, by seed.

    Raises:
        DataError: a file that is no result, or of a study that there is not.
    """
    found: dict[str, list[StudyResult]] = {name: [] for name in STUDIES}
    for path in sorted(folder.glob("*.json")):
        try:
            state = json.loads(read_regular(path, _LARGEST))
            _RESULT(state, "")
        except (OSError, ValueError, RecursionError, Misfit) as error:
            raise DataError(f"{path}: {error}") from error
        if state["study"] not in found:
            raise DataError(f"{path}: there is no study {state['study']!r}")
        found[state["study"]].append(StudyResult(**state))
    for several in found.values():
        several.sort(key=lambda result: result.seed)
    return found


def study_table(study: Study, results: Sequence[StudyResult]) -> str:
    """Markdown: mean ± standard deviation over the seeds, of every row; seconds as a mean."""
    rows = dict.fromkeys(name for result in results for name in result.rows)
    columns = [c for c in study.digits if any(c in r for x in results for r in x.rows.values())]
    seeds = ", ".join(str(result.seed) for result in results)
    lines = [
        f"{study.title}; mean ± standard deviation over seeds {seeds}.",
        "",
        "| " + " | ".join(["", *columns]) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for row in rows:
        numbers = [result.rows[row] for result in results if row in result.rows]
        cells = [_cell([n[c] for n in numbers if c in n], c, study.digits[c]) for c in columns]
        if any(cells):
            lines.append("| " + " | ".join([row, *cells]) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float], column: str, digits: int) -> str:
    if not values:
        return ""
    mean, _, deviation = mean_over_seeds(values)
    if len(values) < 2 or column in ("seconds", "runs"):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


_RESULT = mapping(
    {
        "study": text,
        "seed": whole(0),
        "rows": map_of(text, map_of(text, number())),
        "chosen": map_of(text, text),
        "revision": text,
        "machine": text,
    },
    others=nothing,
)
