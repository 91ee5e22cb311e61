"""All that a run's folder tells of it, read without building anything.

Axes: none.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from metalearn.cli.comparison.runs import ComparedRun, number_in, read_run
from metalearn.cli.log_lines import WARNED
from metalearn.files import check_regular, read_regular
from metalearn.schema import map_of, maybe, number, text, whole
from metalearn.tracking import event_folder

__all__ = ["Picture", "RunStory", "read_story", "tamed"]

_LARGEST = 2**26  # bytes of records, results, or a log
_LARGEST_EVENTS = 2**29
_LARGEST_PICTURE = 2**22
_LARGEST_NUMBER = 2**63
_LONGEST_NAME, _LONGEST_TEXT, _MOST_ENTRIES, _DEEPEST = 200, 2000, 2000, 12
_MOST_PIXELS = 2**24
_MOST_PICTURES, _MOST_WARNINGS = 40, 50
_NUMBERS = map_of(text, maybe(number(nan=True)))


class Picture(NamedTuple):
    """A figure that a run left."""

    step: int
    png: bytes


@dataclass(frozen=True)
class RunStory:
    """What a run's folder tells.

    Attributes:
        run: its settings, its headline and how far it is.
        results: ``results.json``; empty where there is none yet.
        records: objects of ``metrics.jsonl``, in their order.
        origins: ``provenance.json``, then those of resumptions in the order of their steps, by
            what they are.
        warnings: lines of the log that warn, and what of the folder could not be read.
        pictures: the last of each figure in the events for TensorBoard, by name.
        findings: what was asked of the trained run later (``evaluation-*.json``,
            ``diagnosis-*.json``, ``attribution-*.json``), by the name of the file.
    """

    run: ComparedRun
    results: Mapping[str, Any]
    records: Sequence[Mapping[str, float | None]]
    origins: Mapping[str, Mapping[str, Any]]
    warnings: Sequence[str]
    pictures: Mapping[str, Picture]
    findings: Mapping[str, Mapping[str, Any]]


def read_story(folder: Path, name: str, *, figures: bool = True) -> RunStory:
    """Read a run's folder; what is damaged beside its settings is left out, with a warning.

    Args:
        folder: of the run.
        name: by which it is shown.
        figures: whether the figures that it left are read.

    Raises:
        DataError: settings or results that no run of ours would write.
    """
    run = read_run(folder, name)
    run = replace(run, config=tamed(run.config))
    notes: list[str] = []
    results = _json(folder / "results.json", notes) or {}
    resumed = sorted(folder.glob("provenance-resumed-at-*.json"), key=number_in)
    named = {"Provenance": folder / "provenance.json"}
    for path in resumed:
        named[f"Provenance of the resumption at step {number_in(path)[0]:,}"] = path
    origins = {title: _json(path, notes) for title, path in named.items()}
    kinds = ("evaluation", "diagnosis", "attribution")
    found = [path for kind in kinds for path in sorted(folder.glob(f"{kind}-*.json"))]
    findings = {path.stem: _json(path, notes) for path in found}
    records = list(_records(folder / "metrics.jsonl", notes))
    pictures = _pictures(event_folder(folder), notes) if figures else {}
    return RunStory(
        run,
        results,
        records,
        {title: origin for title, origin in origins.items() if origin},
        [*_warnings(folder / "train.log", notes), *notes],
        pictures,
        {name: finding for name, finding in findings.items() if finding},
    )


def _json(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """An object of JSON; None where the file is missing, or is another thing."""
    if not path.exists():
        return None
    try:
        found = json.loads(read_regular(path, _LARGEST))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        notes.append(f"{path.name} cannot be read, so that what it says is missing here")
        return None
    known: dict[str, Any] = tamed(found)
    return known


def tamed(value: Any, depth: int = 0) -> Any:
    """A value of JSON or YAML that a page can hold: no deeper, longer or larger than any of ours.

    Numbers that no float holds become None, and what is too deep three dots.
    """
    if isinstance(value, (Mapping, list)) and depth > _DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        some = islice(value.items(), _MOST_ENTRIES)
        return {str(name)[:_LONGEST_NAME]: tamed(inner, depth + 1) for name, inner in some}
    if isinstance(value, list):
        return [tamed(inner, depth + 1) for inner in value[:_MOST_ENTRIES]]
    if isinstance(value, str):
        return value[:_LONGEST_TEXT]
    if isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
        return None
    return value


def _records(path: Path, notes: list[str]) -> Iterator[dict[str, float | None]]:
    """Lines that are whole."""
    try:
        lines = read_regular(path, _LARGEST).splitlines()
    except FileNotFoundError:
        return
    except OSError:
        notes.append(f"{path.name} cannot be read, or is too large, so that there are no curves")
        return
    for line in lines:
        with suppress(ValueError, TypeError, RecursionError):  # torn by what ended the run
            record = json.loads(line)
            if len(record) > _MOST_ENTRIES:
                continue
            _NUMBERS(record, "")
            whole()(record.get("step"), "step")
            yield record


def _warnings(path: Path, notes: list[str]) -> list[str]:
    """What the log warned of, each sentence once."""
    try:
        lines = read_regular(path, _LARGEST).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError:
        notes.append(
            f"{path.name} cannot be read, or is too large, so that its warnings are missing"
        )
        return []
    found = [m["sentence"] for m in map(WARNED.fullmatch, lines) if m is not None]
    once = list(dict.fromkeys(s.removeprefix("warning: ")[:_LONGEST_TEXT] for s in found))
    if len(once) > _MOST_WARNINGS:
        notes.append(f"{len(once) - _MOST_WARNINGS} further warnings are in {path.name}")
    return once[:_MOST_WARNINGS]


def _pictures(folder: Path, notes: list[str]) -> dict[str, Picture]:
    """The last of each figure."""
    paths = sorted(folder.glob("*tfevents*"))
    if not paths:
        return {}
    from tensorboard.backend.event_processing import event_accumulator as events

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # of files that are torn
    last = dict.fromkeys(events.DEFAULT_SIZE_GUIDANCE, 1)
    try:
        for path in paths:
            check_regular(path, _LARGEST_EVENTS)
    except OSError:
        notes.append("events for TensorBoard are no files, or too large: figures are missing")
        return {}
    try:
        read = events.EventAccumulator(str(folder), size_guidance=last).Reload()
        names = read.Tags()[events.IMAGES]
        shown = [(name, read.Images(name)[-1]) for name in names[:_MOST_PICTURES]]
    except Exception:  # a parser of others, of a file that may be anything
        notes.append("events for TensorBoard cannot be read, so that figures are missing here")
        return {}
    pictures = {name: Picture(int(e.step), bytes(e.encoded_image_string)) for name, e in shown}
    return {name: picture for name, picture in pictures.items() if _is_png(picture.png)}


def _is_png(data: bytes) -> bool:
    if len(data) > _LARGEST_PICTURE:
        return False
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return image.width * image.height <= _MOST_PIXELS
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
