"""What a trainer asks of the place that its numbers and pictures go to; and no such place.

Axes: none; a step is one outer (meta) step, counted from 0 over all resumptions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from metalearn.misfits import advise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NullTracker", "Tracker", "TrackerChoice"]


@runtime_checkable
class Tracker(Protocol):
    """What a trainer asks of the place that its numbers go to."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of one step, named like ``"train/loss"``."""

    def histograms(self, step: int, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Record the distribution of each tensor's entries as ``"<name>/<leaf>"``."""

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Record a figure; it belongs to the tracker from then on."""

    def curves(self, step: int, name: str, values: Mapping[str, float]) -> None:
        """Record numbers that belong in one chart, as ``"<name>/<key>"``."""

    def hparams(
        self, settings: Mapping[str, bool | int | float | str], results: Mapping[str, float]
    ) -> None:
        """Record what was set and what came of it, for the comparison of runs."""

    def member_hparams(
        self,
        settings: Sequence[Mapping[str, bool | int | float | str]],
        results: Sequence[Mapping[str, float]],
    ) -> None:
        """Record what was set for each member of an ensemble and what came of it."""

    def flush(self) -> None:
        """Bring everything recorded so far to disk."""

    def close(self) -> None:
        """Flush and let go of the files; a second call does nothing."""


TrackerChoice = Tracker | str | Sequence[Any]
"""What trainers take: a tracker, or backends as `RunTracker` takes them, for the run's folder."""


def _advice(value: Any) -> str | None:
    path = isinstance(value, str | os.PathLike)
    return f"a Tracker is needed, such as RunTracker({os.fspath(value)!r})" if path else None


advise(Tracker, _advice)


class NullTracker:
    """Takes everything, keeps nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def histograms(self, step: int, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Do nothing."""

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Do nothing."""

    def curves(self, step: int, name: str, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def hparams(
        self, settings: Mapping[str, bool | int | float | str], results: Mapping[str, float]
    ) -> None:
        """Do nothing."""

    def member_hparams(
        self,
        settings: Sequence[Mapping[str, bool | int | float | str]],
        results: Sequence[Mapping[str, float]],
    ) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
