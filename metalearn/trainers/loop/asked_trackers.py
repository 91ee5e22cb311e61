"""Trackers that a trainer was asked for by name, which begin when its training does.

Axes: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from metalearn.errors import SettingError
from metalearn.near_names import with_nearest
from metalearn.tracking import NullTracker, RunTracker, Tracker, TrackerChoice
from metalearn.tracking.backends import BACKENDS, check_backends
from metalearn.trainers.loop.settings import LoopSettings

__all__ = ["AskedTracker", "asked_tracker", "begun_tracker"]


class AskedTracker(NullTracker):
    """Keeps nothing until the training begins.

    Args:
        choice: as `RunTracker` takes it.
        folder: of the run.
    """

    def __init__(self, choice: str | Sequence[Any], folder: Path) -> None:
        self.choice, self.folder = choice, folder


def asked_tracker(choice: TrackerChoice | None, folder: Path | None, *, alone: bool) -> Tracker:
    """What a trainer hands its records to.

    Args:
        choice: a tracker, or the names of some.
        folder: of the run.
        alone: whether this process writes; others keep nothing.

    Raises:
        SettingError: a name that is not known, or no folder for its records.
    """
    if choice is None or not alone:
        return NullTracker()
    if not isinstance(choice, str | list | tuple):
        given: Any = choice
        tracker: Tracker = given
        return tracker
    if isinstance(choice, str) and choice not in BACKENDS:
        accepted = f"one of {', '.join(BACKENDS)}, a list of them or a Tracker is needed"
        if choice.lower() not in BACKENDS:
            accepted += f", such as RunTracker({choice!r})"
        raise SettingError("tracker", choice, with_nearest(accepted, choice, BACKENDS))
    check_backends(choice)
    if folder is None:
        accepted = "the folder of the run is needed beside it, folder=…, for its records"
        raise SettingError("tracker", choice, accepted)
    return AskedTracker(choice, folder)


def begun_tracker(loop: Any) -> Tracker:
    """The tracker of a loop that begins to train, or goes on: those that were asked for begin.

    Args:
        loop: where it stands says which records of its folder stay.
    """
    asked = loop.tracker
    if not isinstance(asked, AskedTracker):
        same: Tracker = asked
        return same
    settings: LoopSettings = loop.settings
    given = {f.name: getattr(settings, f.name) for f in fields(settings)}
    again = ("validation",) if loop.validation_due else ()
    old = (asked.folder / "metrics.jsonl").exists()
    return RunTracker(
        asked.folder,
        resume_step=loop.step if old else None,
        again=again if old else (),
        bands=loop.evaluator.bands,
        tracker=asked.choice,
        settings={k: v for k, v in given.items() if isinstance(v, bool | int | float | str)},
    )
