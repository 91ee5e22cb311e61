"""Backends by name: another one is a class in a file of its own and a line here.

Axes: none.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn.errors import SettingError
from metalearn.near_names import with_nearest
from metalearn.tracking.backends.backend import RunFacts, TrackerBackend
from metalearn.tracking.backends.csv_rows import CsvRows
from metalearn.tracking.backends.mlflow_run import MlflowRun
from metalearn.tracking.backends.tensorboard_events import TensorBoardEvents
from metalearn.tracking.backends.wandb_run import WandbRun

__all__ = [
    "BACKENDS",
    "DEFAULT_TRACKER",
    "backends_of",
    "check_backends",
    "names_of",
    "watched",
]

BACKENDS: Mapping[str, type[TrackerBackend]] = {
    kind.name: kind for kind in (TensorBoardEvents, CsvRows, WandbRun, MlflowRun)
}
"""By the name that is typed; figures are handed over in this order."""
DEFAULT_TRACKER = "tensorboard"


def names_of(tracker: Any) -> tuple[Any, ...]:
    """What was asked for as a tuple: of one name, of several, of None."""
    if tracker is None:
        return ()
    return tuple(tracker) if _several(tracker) else (tracker,)


def check_backends(tracker: Any, *, own: bool = True, setting: str = "tracker") -> None:
    """Refuse what is no backend, names one twice, or lacks its package.

    Args:
        tracker: a name, a `TrackerBackend` or a class of one, several of these, or None.
        own: whether it may be anything but names.
        setting: where it was given.

    Raises:
        SettingError: says what is accepted, or which package to install.
    """
    given, known = names_of(tracker), ", ".join(BACKENDS)
    if not given and tracker is not None:
        accepted = f"at least one of {known} is needed, or null: records in metrics.jsonl alone"
        raise SettingError(setting, tracker, accepted)
    for one in given:
        kind = _kind(one) if own or isinstance(one, str) else None
        if kind is None:
            accepted = f"one of {known}, a list of them or null is needed"
            accepted += ", or a TrackerBackend" if own else ""
            raise SettingError(setting, tracker, with_nearest(accepted, one, BACKENDS))
        if kind.package is not None and importlib.util.find_spec(kind.package) is None:
            ours = kind in BACKENDS.values()
            what = f"'torch-metalearn[{kind.name}]'" if ours else kind.package
            accepted = f"the package {kind.package} is needed for it: pip install {what}"
            raise SettingError(setting, one, accepted)
    twice = [one for number, one in enumerate(given) if one in given[:number]]
    if twice:
        raise SettingError(setting, tracker, f"each once is needed, and {twice[0]} is there twice")


def backends_of(tracker: Any, run: RunFacts) -> list[TrackerBackend]:
    """The backends that were asked for, begun.

    Raises:
        SettingError: see `check_backends`; or one that cannot begin.
    """
    check_backends(tracker)
    order = list(BACKENDS.values())
    kinds = sorted(
        names_of(tracker),
        key=lambda one: order.index(kind) if (kind := _kind(one)) in order else len(order),
    )
    begun: list[TrackerBackend] = []
    try:
        for one in kinds:
            begun.append(one if isinstance(one, TrackerBackend) else _class(one)(run))
    except BaseException:
        for backend in begun:
            backend.close("failed")
        raise
    return begun


def watched(tracker: Any, folder: Path) -> str:
    """How a run is looked at: a command, a file or an address for each of its backends."""
    ways = [_class(one).watched(folder) for one in names_of(tracker)]
    return "; ".join(way for way in ways if way) or str(folder / "metrics.jsonl")


def _several(tracker: Any) -> bool:
    return isinstance(tracker, Sequence) and not isinstance(tracker, str)


def _class(one: Any) -> type[TrackerBackend]:
    kind = _kind(one)
    assert kind is not None  # checked before
    return kind


def _kind(one: Any) -> type[TrackerBackend] | None:
    """The class of a name, of an object or of itself."""
    if isinstance(one, str):
        return BACKENDS.get(one)
    if inspect.isclass(one) and issubclass(one, TrackerBackend):
        return one
    return type(one) if isinstance(one, TrackerBackend) else None
