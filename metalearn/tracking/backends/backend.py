"""What a place for records is told by a run; each method that it has no use for does nothing.

Axes: none; a step is one outer (meta) step, counted from 0 over all resumptions.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

__all__ = ["RunFacts", "Setting", "TrackerBackend", "picture_of"]

Setting = bool | int | float | str


@dataclass(frozen=True)
class RunFacts:
    """What a backend knows of the run that it begins with, or goes on with."""

    folder: Path
    """There already; its name is the run's."""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    """By dotted names; none where nobody has told them."""
    resume_step: int | None = None
    """The last step whose records stay; None keeps all."""
    again: tuple[str, ...] = ()
    """Beginnings of names that will be recorded once more at ``resume_step`` itself."""
    records: Sequence[Mapping[str, Any]] = ()
    """Lines of ``metrics.jsonl`` that stay: ``step``, ``time`` and numbers, None if not finite."""


class TrackerBackend:
    """A place for the records of a run: a class of one's own overrides what it has a use for.

    ``RunTracker(folder, tracker=["csv", Mine])`` calls ``Mine(facts)``, then its methods in the
    process that trains, of several ranks in the first alone. A figure, an array or a mapping is
    not the backend's to change.

    Args:
        run: what it begins with.
    """

    name: ClassVar[str] = "own"
    """In messages, and on the command line where it is registered."""
    package: ClassVar[str | None] = None
    """What has to be installed, beyond this package's own requirements."""
    failures: tuple[type[Exception], ...] = ()
    """Errors that cost its further records, with one warning, and not the training."""

    def __init__(self, run: RunFacts) -> None:
        """Begin, or go on where the folder has a run."""

    @classmethod
    def watched(cls, folder: Path) -> str | None:
        """How a run in this folder is looked at, in a few words; None where there is no way."""
        return None

    def scalars(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """Record numbers, some of them perhaps not finite; ``time`` is in Unix seconds."""

    def chart(self, title: str, names: Sequence[str]) -> None:
        """Show numbers that were just recorded in one chart."""

    def histogram(self, step: int, name: str, values: np.ndarray[Any, Any]) -> None:
        """Record the distribution of float64 values, at least one, all finite."""

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Record a figure."""

    def band_figure(self, step: int, tag: str, figure: Figure) -> None:
        """Record numbers with bands, drawn over the training, in a section of the dashboard."""
        self.figure(step, tag, figure)

    def hparams(self, settings: Mapping[str, Setting]) -> None:
        """Record what was set, for the comparison of runs; results follow as scalars."""

    def member_hparams(
        self,
        step: int,
        time: float,
        settings: Sequence[Mapping[str, Setting]],
        results: Mapping[str, Mapping[str, float]],
    ) -> None:
        """Record what was set for members and what came of each, by its name ``member_<m>``."""
        numbers = {f"{n}/{key}": value for n, row in results.items() for key, value in row.items()}
        self.scalars(step, time, numbers)

    def flush(self) -> None:
        """Bring everything recorded so far to disk."""

    def close(self, ending: str = "finished") -> None:
        """Flush and let go; ``ending`` is finished, stopped (may go on) or failed."""


def picture_of(figure: Figure) -> bytes:
    """A figure as PNG, in its own resolution."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=figure.dpi)
    return file.getvalue()
