"""TensorBoard's events in the run's folder: ``tracker=tensorboard``.

Axes: none; a step is one outer (meta) step, counted from 0 over all resumptions.
"""

from __future__ import annotations

import math
import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalearn.tracking.backends.backend import RunFacts, Setting, TrackerBackend
from metalearn.tracking.dashboard import chart_of
from metalearn.tracking.tags import Tags, shown_names

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

__all__ = ["TensorBoardEvents", "event_folder"]


def event_folder(folder: Path) -> Path:
    """Where a run keeps its events: in its folder, by whose name TensorBoard calls it then.

    A run that was begun by an earlier version goes on in its ``tensorboard/``.
    """
    earlier = folder / "tensorboard"
    return earlier if earlier.exists() else folder


class TensorBoardEvents(TrackerBackend):
    """Writes ``folder/events.out.tfevents.*``, in the words of `metalearn.tracking.dashboard`.

    Where a run goes on, events after its step are marked as not to be shown. A disk that fails
    costs events: a warning is logged once.
    """

    name = "tensorboard"

    def __init__(self, run: RunFacts) -> None:
        from metalearn.tracking.events import EventWriter  # a second to import: only if asked for

        self._events = event_folder(run.folder)
        kept = None if run.resume_step is None else run.resume_step + 1
        again = run.again and run.resume_step == 0
        self._writer: Any = EventWriter(self._events, purge_step=0 if again else kept)
        self._tags = Tags(run.folder / "metrics.jsonl")
        self._charts: dict[str, dict[str, list[object]]] = {}

    @classmethod
    def watched(cls, folder: Path) -> str:
        """The command that shows this run beside those in the same folder."""
        return f"tensorboard --logdir {shlex.quote(str(folder.parent))}"

    def scalars(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """Each number under the name that it has in TensorBoard, but for the ends of bands."""
        for name in shown_names(values):
            tag = self._tags.number(name)
            if tag is not None:
                self._writer.add_scalar(tag, values[name], step)
                self._show_together(chart_of(tag), [tag], "training and validation")

    def chart(self, title: str, names: Sequence[str]) -> None:
        """A chart of the Custom Scalars tab."""
        tags = [tag for name in names if (tag := self._tags.number(name)) is not None]
        self._show_together(title.replace("_", " "), tags, "curves")

    def histogram(self, step: int, name: str, values: np.ndarray[Any, Any]) -> None:
        """Its name in words."""
        self._writer.add_histogram(self._tags.distribution(name), values, step)

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Draw the figure into Images and close it."""
        self._writer.add_figure(self._tags.figure(name), figure, step, close=True)

    def band_figure(self, step: int, tag: str, figure: Figure) -> None:
        """The same, under the very name."""
        self._writer.add_figure(self._tags.band(tag), figure, step, close=True)

    def hparams(self, settings: Mapping[str, Setting]) -> None:
        """One row of the HParams table; only the first call's settings count."""
        _write_row(self._writer, settings)

    def member_hparams(
        self,
        step: int,
        time: float,
        settings: Sequence[Mapping[str, Setting]],
        results: Mapping[str, Mapping[str, float]],
    ) -> None:
        """Each member as a run of its own inside this one, if members differ in more than seeds."""
        from metalearn.tracking.events import EventWriter

        for old in self._events.glob("member_[0-9]*/"):
            if all(path.name.startswith("events.out.tfevents") for path in old.iterdir()):
                shutil.rmtree(old, ignore_errors=True)  # and nothing that a person put there
        every = dict.fromkeys(name for row in settings for name in row)
        own = [name for name in every if _differs(name, settings)]
        for index, (given, (member, numbers)) in enumerate(zip(settings, results.items())):
            if not set(own) - {"seed", "member"}:
                break
            writer: Any = EventWriter(self._events / member)
            tags = Tags()
            for key, value in numbers.items():
                tag = tags.number(key)
                if tag is not None:
                    writer.add_scalar(tag, float(value), step)
            _write_row(writer, {"member": index} | {n: given[n] for n in own if n in given})
            writer.close()

    def flush(self) -> None:
        """Bring all events to disk, where each is already."""
        self._writer.flush()

    def close(self, ending: str = "finished") -> None:
        """Close the file."""
        self._writer.close()

    def _show_together(self, chart: str | None, tags: Sequence[str], category: str) -> None:
        """Have Custom Scalars show records in one chart, with a legend."""
        if chart is None or not tags:
            return
        wanted = [f"^{re.escape(tag)}$" for tag in tags]
        charts = self._charts.setdefault(category, {})
        known: Any = charts.setdefault(chart, ["Multiline", []])[1]
        new = [tag for tag in wanted if tag not in known]
        if new:
            known += new
            order = sorted(self._charts.items(), reverse=True)  # training and validation first
            layout = {name: dict(sorted(charts.items())) for name, charts in order}
            self._writer.add_custom_scalars(layout)  # the newest layout counts


def _differs(name: str, rows: Sequence[Mapping[str, object]]) -> bool:
    return any(row.get(name) != rows[0].get(name) for row in rows)


def _write_row(writer: Any, settings: Mapping[str, Setting]) -> None:
    from torch.utils.tensorboard.summary import hparams

    # SummaryWriter.add_hparams would open a second run inside the writer's. And of its three
    # records the first (the "experiment") stays away: TensorBoard would take the columns of
    # all runs from one run's list; without it, they are the union over the runs.
    records: Callable[..., tuple[Any, Any, Any]] = hparams
    _, start, end = records({k: _setting(v) for k, v in settings.items()}, {})
    file = writer._get_file_writer()
    file.add_summary(start)
    file.add_summary(end)


def _setting(value: Setting) -> int | float | str:
    # The table shows booleans as 0 and 1, and breaks on numbers that JSON cannot hold.
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
