"""Runs that are to be compared: what their folders say, read without building anything.

Axes: none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from metalearn.cli.run_config import saved_config
from metalearn.errors import DataError
from metalearn.files import read_regular
from metalearn.schema import Misfit, anything, map_of, mapping, maybe, number, text, whole

__all__ = ["ComparedRun", "Span", "number_in", "read_run"]

_LARGEST = 2**26  # bytes of results, or of records
_LARGEST_ORIGIN = 2**20  # bytes of a record of where a run comes from
_MOST_NUMBERS = 256  # of a headline
_SCORES = ("accuracy", "nll", "brier", "ece", "rmse", "coverage")
"""What the headline of samples has, in runs from before there was one."""

_NUMBER = maybe(number(nan=True))
_RESULTS = mapping(
    {"steps": whole()},
    {"headline": map_of(text, _NUMBER), "reason": text, "test": map_of(text, mapping({}))},
)


class Span(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float
    over: str
    """What it was taken over: ``"test tasks"`` or ``"test samples"``, or ``"seeds"``."""


@dataclass(frozen=True)
class ComparedRun:
    """What a run's folder says of it.

    Attributes:
        name: its folder, as it is shown.
        config: its settings, as they were saved.
        seed: of the run.
        numbers: its headline; NaN where one was not finite.
        spans: intervals of these over what it was tested on, where there are some.
        state: None where it is finished, else how far it is.
        code: revision that trained it, where that is known.
    """

    name: str
    config: Mapping[str, Any]
    seed: int
    numbers: Mapping[str, float] = field(default_factory=dict)
    spans: Mapping[str, Span] = field(default_factory=dict)
    state: str | None = None
    code: str | None = None


def read_run(folder: Path, name: str) -> ComparedRun:
    """A run as its folder tells it.

    Args:
        folder: of the run.
        name: by which it is shown.

    Raises:
        DataError: a file that says nothing, or what no run of ours would write.
    """
    config = OmegaConf.to_container(saved_config(folder, trust=True))  # of which nothing is built
    assert isinstance(config, dict)
    settings = {str(key): value for key, value in config.items()}
    seed, code = settings["seed"], _code(folder)
    results = _results(folder / "results.json")
    if results is None:
        return ComparedRun(name, settings, seed, state=_how_far(folder, settings), code=code)
    numbers, spans = _headline(results), _spans(results.get("test") or {})
    steps = _steps(settings)
    if results.get("reason") == "finished" and steps is not None and results["steps"] < steps:
        # It goes on with more steps: these results are of other settings.
        return ComparedRun(name, settings, seed, state=_how_far(folder, settings), code=code)
    spans = {key: span for key, span in spans.items() if key in numbers}
    return ComparedRun(name, settings, seed, numbers, spans, code=code)


def _results(path: Path) -> dict[str, Any] | None:
    """What came of a run; None where there is nothing yet.

    Raises:
        DataError: the file cannot be read, or is no such thing.
    """
    if not path.exists() and not path.is_symlink():
        return None
    try:
        found = json.loads(read_regular(path, _LARGEST))
        _RESULTS(found, "")
        headline = found.get("headline", {})
        if len(headline) > _MOST_NUMBERS:
            raise Misfit("the number of entries of headline", len(headline), f"{_MOST_NUMBERS}")
    except (OSError, ValueError, RecursionError) as error:
        reason = error if isinstance(error, Misfit) else "this cannot be read as JSON"
        raise DataError(f"{path}: these are no results of a run ({reason})") from error
    assert isinstance(found, dict)
    return found


def _headline(results: Mapping[str, Any]) -> dict[str, float]:
    """The numbers by which runs are compared; of runs that had none, what it would have been."""
    if "headline" in results:
        found = results["headline"]
    else:
        best = [name for name in results if name.startswith("validation/")]
        found = {f"best/{name.rpartition('/')[2]}": results[name] for name in best[:1]}
        for name, report in (results.get("test") or {}).items():
            found |= _tested(name, report)
    numbers = {}
    for name, value in found.items():
        try:
            _NUMBER(value, name)
        except Misfit:
            continue  # of a run from before there was a headline
        numbers[name] = math.nan if value is None else float(value)
    return numbers


def _tested(name: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of a test without a headline."""
    found = report.get("ensemble")
    if isinstance(found, dict):
        return {f"test/{score}": found[score] for score in _SCORES if score in found}
    score = "accuracy" if "accuracy" in report else "loss"
    last = _last(report.get(score))
    return {} if last is None else {_of_tasks(name, score): last[0]}


def _spans(test: Mapping[str, Mapping[str, Any]]) -> dict[str, Span]:
    """By the name of a headline's number, its interval within the run."""
    found: dict[str, Span] = {}
    for name, report in test.items():
        for score in ("accuracy", "loss"):
            last = _last(report.get(score))
            if last is not None:
                mean, half = last
                found[_of_tasks(name, score)] = Span(mean - half, mean + half, "test tasks")
        others = report.get("out_of_distribution")
        for score, scores in others.items() if isinstance(others, dict) else ():
            ends = scores.get("auroc_interval") if isinstance(scores, dict) else None
            if isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends)):
                found[f"test/auroc_{score}"] = Span(float(ends[0]), float(ends[1]), "test samples")
    return found


def _of_tasks(report: str, score: str) -> str:
    return f"test/inductive_{score}" if report == "inductive" else f"test/{score}"


def _last(along: Any) -> tuple[float, float] | None:
    """Mean and half-width after the last inner step; None of anything else."""
    last = along[-1] if isinstance(along, list) and along else None
    ends: Any = [last.get("mean"), last.get("interval95")] if isinstance(last, dict) else [None]
    return (ends[0], ends[1]) if all(map(_is_number, ends)) else None


def _is_number(value: Any) -> bool:
    try:
        number()(value, "")
    except Misfit:
        return False
    return math.isfinite(value)


def _steps(settings: Mapping[str, Any]) -> int | None:
    steps = settings["trainer"].get("steps")
    return steps if isinstance(steps, int) and not isinstance(steps, bool) else None


def number_in(path: Path) -> tuple[int, str]:
    """By which files ``…_<number>.pt`` and ``…-<number>.json`` are put into their order."""
    found = re.search(r"(\d{1,18})\.(?:json|pt)$", path.name)
    return (int(found[1]) if found else 0, path.name)


def _how_far(folder: Path, settings: Mapping[str, Any]) -> str:
    """How far a run has come that has no results, and that it diverged where it left such a state.

    A run that goes on after it diverged is as far as its records say.
    """
    lost = sorted((folder / "checkpoints").glob("non_finite_step_*.pt"), key=number_in)
    if lost and not (folder / "results.json").exists():
        return f"diverged at step {number_in(lost[-1])[0]:,}: a loss or gradient was not finite"
    try:
        lines = read_regular(folder / "metrics.jsonl", _LARGEST).splitlines()
    except OSError:
        lines = []
    for line in reversed(lines):
        try:
            step = json.loads(line)["step"]
            whole()(step, "step")
        except (ValueError, TypeError, KeyError, RecursionError):
            continue  # torn by what ended the run
        of = _steps(settings)
        return f"not finished: step {step}" + ("" if of is None else f" of {of}")
    return "not finished: no step recorded"


def _code(folder: Path) -> str | None:
    """The revision of the code; None where that is not known."""
    try:
        found = json.loads(read_regular(folder / "provenance.json", _LARGEST_ORIGIN))
        mapping({"git": mapping({"revision": text}, {"dirty": anything})})(found, "")
    except (OSError, ValueError, RecursionError):
        return None
    revision: str = found["git"]["revision"]
    return revision[:7] + ("+" if found["git"].get("dirty") else "")
