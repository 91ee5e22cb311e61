"""What a row's run gave: few numbers, kept beside the project while the run itself is not.

Axes: K inner steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from metalearn.errors import DataError
from metalearn.ledger.rows import ROWS, TABLES, Protocol, Row
from metalearn.schema import (
    Kind,
    Misfit,
    choice,
    entries,
    list_of,
    map_of,
    mapping,
    maybe,
    nothing,
    number,
    text,
    whole,
)

__all__ = ["Outcome", "Score", "outcome_of", "read_outcomes"]


@dataclass(frozen=True)
class Score:
    """A mean over test tasks, after the last inner step."""

    mean: float
    interval95: float
    """Half the width of the 95 % interval over tasks."""


@dataclass(frozen=True)
class Outcome:
    """One seed of a row."""

    row: str
    seed: int
    scores: dict[Protocol, Score]
    """In the measure of the row's table."""
    tasks: int
    """Of the test."""
    steps: int
    chosen_step: int
    """Of the checkpoint that was tested, the best of validation."""
    monitor: str
    """The number of validation that chose it."""
    seconds: float
    """Of training and validation."""
    cpu_seconds: float | None
    """Of the processor in that time, in all threads; None where an earlier release began."""
    revision: str
    """Of the project."""
    machine: str
    normalization: str = ""
    """What the network normalises with; empty of runs that did not say so."""
    device: str = "cpu"
    """Where it was trained; runs that did not say so were trained on the processor."""

    curve: list[tuple[int, float]] = field(default_factory=list)
    """Steps, and the monitor at each validation; nothing of runs of before it was kept."""

    def as_json(self) -> dict[str, Any]:
        """Plain, for a file."""
        return asdict(self)


def outcome_of(row: Row, seed: int, folder: Path) -> Outcome:
    """What a finished and evaluated run of a row gave.

    Args:
        row: whose run it is.
        seed: of the run.
        folder: of the run, with ``results.json``, ``provenance.json``, ``metrics.jsonl`` and
            ``evaluation-test.json``.

    Raises:
        DataError: a file that is missing or not what a run writes.
    """
    results = _read(folder / "results.json", _RESULTS)
    tested = _read(folder / "evaluation-test.json", _EVALUATION)
    made = _read(folder / "provenance.json", _PROVENANCE)
    measure = TABLES[row.table].measure
    scores: dict[Protocol, Score] = {
        name: _score(found, measure) for name, found in tested["scores"].items()
    }
    (monitor,) = (name for name in results if name.startswith("validation/"))
    threads = made["cpu"]["threads"]
    return Outcome(
        row.name,
        seed,
        scores,
        next(iter(tested["scores"].values()))["tasks"],
        results["steps"],
        tested["step"],
        monitor.removeprefix("validation/"),
        results["seconds"],
        results["cpu_seconds"],
        (made["git"] or {}).get("revision", "unknown")[:7],
        f"{made['cpu']['name']}, {threads} thread{'s' * (threads > 1)}",
        next(iter(tested["scores"].values())).get("normalization", ""),
        made.get("device", "cpu"),
        _curve(folder / "metrics.jsonl", monitor),
    )


def read_outcomes(folder: Path) -> dict[str, list[Outcome]]:
    """Of each row, the outcomes that a folder keeps, by seed.

    Raises:
        DataError: a file that is no outcome, or of a row that there is not.
    """
    found: dict[str, list[Outcome]] = {name: [] for name in ROWS}
    for path in sorted(folder.glob("*.json")):
        state = _read(path, _OUTCOME)
        if state["row"] not in found:
            raise DataError(f"{path}: there is no row {state['row']!r}")
        scores = {name: Score(**score) for name, score in state["scores"].items()}
        curve = [(step, value) for step, value in state.get("curve", [])]
        found[state["row"]].append(Outcome(**{**state, "scores": scores, "curve": curve}))
    for several in found.values():
        several.sort(key=lambda outcome: outcome.seed)
    return found


def _curve(path: Path, monitor: str) -> list[tuple[int, float]]:
    """A number of validation by step; of a step that was validated twice, the later.

    Raises:
        DataError: the file cannot be read, or has a line that is none of a run's.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found = {line["step"]: line[monitor] for line in lines if monitor in line}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: {error}") from error
    return [(step, round(value, 4)) for step, value in sorted(found.items())]


def _score(found: Mapping[str, Any], measure: str) -> Score:
    """After the last inner step, in the measure of a table."""
    last = found["loss" if measure == "loss" else "accuracy"][-1]
    mean, half = last["mean"], last["interval95"]
    if measure == "loss":
        return Score(mean, half)
    return Score(100 * (1 - mean if measure == "error" else mean), 100 * half)


def _read(path: Path, kind: Kind) -> dict[str, Any]:
    """A JSON file that is what it has to be.

    Raises:
        DataError: names the file and what is wrong.
    """
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        kind(state, "")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, Misfit) as error:
        raise DataError(f"{path}: {error}") from error
    assert isinstance(state, dict)
    return state


_ALONG = list_of(mapping({"inner_step": whole(), "mean": number(), "interval95": number()}))
_RESULTS = mapping(
    {"steps": whole(), "seconds": number(0), "cpu_seconds": maybe(number(0)), "reason": text}
)
_EVALUATION = mapping(
    {
        "step": whole(),
        "scores": map_of(
            choice("transductive", "inductive"),
            mapping(
                {"tasks": whole(1), "loss": _ALONG},
                {"accuracy": maybe(_ALONG), "normalization": text},
            ),
        ),
    }
)
_PROVENANCE = mapping(
    {
        "git": maybe(mapping({"revision": text})),
        "cpu": mapping({"name": text, "threads": whole(1)}),
    },
    {"device": text},
)
_OUTCOME = mapping(
    {
        "row": text,
        "seed": whole(),
        "scores": map_of(
            choice("transductive", "inductive"),
            mapping({"mean": number(), "interval95": number(0)}, others=nothing),
        ),
        "tasks": whole(1),
        "steps": whole(),
        "chosen_step": whole(),
        "monitor": text,
        "seconds": number(0),
        "cpu_seconds": maybe(number(0)),
        "revision": text,
        "machine": text,
    },
    {"normalization": text, "device": text, "curve": list_of(entries(whole(), number()))},
    others=nothing,
)
