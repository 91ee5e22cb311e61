"""A run's numbers and pictures in its folder: JSON lines and TensorBoard.

Axes: none; a step is one outer (meta) step, counted from 0 over all resumptions.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metalearn.core.tree import check_tensors
from metalearn.errors import SettingError, check_whole
from metalearn.files import append_whole, failures_named
from metalearn.signatures import checked
from metalearn.tracking.band_figures import BandFigures
from metalearn.tracking.dashboard import chart_of
from metalearn.tracking.metric_lines import drop_lines
from metalearn.tracking.provenance import plain
from metalearn.tracking.tags import Tags, shown_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RunTracker", "event_folder"]

_LARGEST = 1e20  # the outermost bin of TensorBoard's histograms


def event_folder(folder: Path) -> Path:
    """Where a run keeps its events: in its folder, by whose name TensorBoard calls it then.

    A run that was begun by an earlier version goes on in its ``tensorboard/``.
    """
    earlier = folder / "tensorboard"
    return earlier if earlier.exists() else folder


class RunTracker:
    """Writes ``folder/metrics.jsonl`` and, for TensorBoard, ``folder/events.out.tfevents.*``.

    ``metrics.jsonl`` has one object a line for each call of ``scalars`` or ``curves``:
    ``{"step": 10, "time": 1760000000.0, "train/loss": 0.5}``, time in Unix seconds. A non-finite
    number is written as ``null``, so that every line is valid JSON; TensorBoard keeps it as it is.
    TensorBoard shows numbers under names that its cards can be ordered and read by
    (`metalearn.tracking.dashboard`), each its own; some it does not, such as the ends of bands,
    which figures have.

    A run in a folder that already has one is continued: new lines follow the old, without the torn
    last line that a crash may have left. With ``resume_step=k`` whatever an interrupted run wrote
    after step k is dropped first, in both places.

    A disk that fails for TensorBoard's events costs these: a warning is logged once. One
    that fails in ``metrics.jsonl`` is an error, and leaves no part of the line.

    Args:
        folder: the run's folder, made if missing.
        resume_step: the last step whose records stay; None keeps all.
        again: beginnings of names that will be recorded once more at ``resume_step`` itself; its
            lines with such a name are dropped as well.
        bands: title to names of scalars with companions ``<name>_low`` and ``<name>_high``, the
            ends of a band; each is drawn over the training, with training and validation in one
            figure. The first of all stands in TensorBoard's first section.

    Raises:
        SettingError: a negative ``resume_step``.
        OSError: ``metrics.jsonl`` cannot be written.
    """

    @checked
    def __init__(
        self,
        folder: Path,
        *,
        resume_step: int | None = None,
        again: Sequence[str] = (),
        bands: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        from metalearn.tracking.events import EventWriter  # a second to import: only if asked for

        if resume_step is not None:
            check_whole("resume_step", resume_step, 0)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = folder / "metrics.jsonl"
        last = drop_lines(self._metrics, resume_step, again)
        self._lines = self._metrics.open("ab", buffering=0)
        self._events = event_folder(folder)
        kept = None if resume_step is None else resume_step + 1
        self._writer: Any = EventWriter(
            self._events, purge_step=0 if again and resume_step == 0 else kept
        )
        self._last_step = last
        self._tags = Tags(self._metrics)
        self._charts: dict[str, dict[str, list[object]]] = {}
        self._bands = BandFigures(bands or {}, self._metrics)

    @checked
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one JSON line, and each number to TensorBoard under the name it has there."""
        check_whole("step", step, 0)
        numbers = self._line(step, values)
        for name in shown_names(numbers):
            tag = self._tags.number(name)
            if tag is not None:
                self._writer.add_scalar(tag, numbers[name], step)
                self._show_together(chart_of(tag), [tag], "training and validation")
        self._last_step = max(self._last_step, step)
        self._bands.take(step, values)
        self._draw_bands(self._bands.due())

    @checked
    def histograms(self, step: int, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write the histogram of each tensor as ``<name>/<leaf>``, in words.

        Left out, since TensorBoard cannot draw them: empty tensors, and those with an entry that
        is not finite or lies beyond ±1e20.
        """
        check_whole("step", step, 0)
        for leaf, tensor in tensors.items():  # which may be made one by one
            check_tensors({leaf: tensor}, "tensors")
            # In float64 the sum of squares that TensorBoard stores cannot overflow.
            values = tensor.detach().to("cpu").to(torch.float64).flatten()
            if values.numel() and bool((values.abs() < _LARGEST).all()):
                tag = self._tags.distribution(f"{name}/{leaf}")
                self._writer.add_histogram(tag, values.numpy(), step)

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Draw the figure into TensorBoard's Images and close it."""
        self._writer.add_figure(self._tags.figure(name), figure, step, close=True)

    @checked
    def curves(self, step: int, name: str, values: Mapping[str, float]) -> None:
        """Write scalars ``<name>/<key>``; the Custom Scalars tab shows them in one chart."""
        self.scalars(step, {f"{name}/{key}": value for key, value in values.items()})
        tags = [tag for key in values if (tag := self._tags.number(f"{name}/{key}")) is not None]
        self._show_together(name.replace("_", " "), tags, "curves")

    def hparams(
        self, settings: Mapping[str, bool | int | float | str], results: Mapping[str, float]
    ) -> None:
        """Make this run one row of TensorBoard's HParams table.

        The results are scalars of the last step seen (so they stand in the JSON lines too). Only
        the first call's settings count.
        """
        _write_row(self._writer, settings)
        if results:
            self.scalars(self._last_step, results)
        self.flush()

    def member_hparams(
        self,
        settings: Sequence[Mapping[str, bool | int | float | str]],
        results: Sequence[Mapping[str, float]],
    ) -> None:
        """Make each member one row of TensorBoard's HParams table.

        Member m is a run ``member_<m>`` inside this one, with those of its settings that differ
        between members, its number as the setting ``member`` (the table cuts names of runs short)
        and, as scalars of the last step seen, its results. Members that differ in nothing but
        seeds are no runs. A second call replaces the rows. The JSON line has the results as
        ``member_<m>/<name>``. Members are counted from 0, with leading zeros.

        Raises:
            SettingError: results of another number of members than settings.
        """
        from metalearn.tracking.events import EventWriter

        if len(settings) != len(results):
            accepted = f"one for each of the {len(settings)} members is needed"
            raise SettingError("number of results", len(results), accepted)
        step, digits = self._last_step, max(2, len(str(len(settings) - 1)))
        names = [f"member_{index:0{digits}}" for index in range(len(settings))]
        for old in self._events.glob("member_[0-9]*/"):
            if all(path.name.startswith("events.out.tfevents") for path in old.iterdir()):
                shutil.rmtree(old, ignore_errors=True)  # and nothing that a person put there
        every = dict.fromkeys(name for row in settings for name in row)
        own = [name for name in every if _differs(name, settings)]
        for index, (name, given, numbers) in enumerate(zip(names, settings, results)):
            if not set(own) - {"seed", "member"}:
                break
            writer: Any = EventWriter(self._events / name)
            tags = Tags()
            for key, value in numbers.items():
                tag = tags.number(key)
                if tag is not None:
                    writer.add_scalar(tag, float(value), step)
            _write_row(writer, {"member": index} | {n: given[n] for n in own if n in given})
            writer.close()
        self._line(step, {f"{n}/{k}": v for n, row in zip(names, results) for k, v in row.items()})

    def flush(self) -> None:
        """Bring everything recorded so far to disk."""
        if not self._lines.closed:
            self._writer.flush()

    def close(self) -> None:
        """Flush and close both files; a second call does nothing."""
        if not self._lines.closed:
            self._draw_bands(self._bands.left())
            self._lines.close()
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

    def _draw_bands(self, figures: Mapping[str, tuple[int, Figure]]) -> None:
        for tag, (step, figure) in figures.items():
            self._writer.add_figure(self._tags.band(tag), figure, step, close=True)

    def _line(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        numbers = {name: float(value) for name, value in values.items()}
        record = plain({"step": step, "time": round(time.time(), 3), **numbers})
        with failures_named(self._metrics):
            append_whole(self._lines, json.dumps(record, allow_nan=False).encode() + b"\n")
        return numbers


def _differs(name: str, rows: Sequence[Mapping[str, object]]) -> bool:
    return any(row.get(name) != rows[0].get(name) for row in rows)


def _write_row(writer: Any, settings: Mapping[str, bool | int | float | str]) -> None:
    from torch.utils.tensorboard.summary import hparams

    # SummaryWriter.add_hparams would open a second run inside the writer's. And of its three
    # records the first (the "experiment") stays away: TensorBoard would take the columns of
    # all runs from one run's list; without it, they are the union over the runs.
    records: Callable[..., tuple[Any, Any, Any]] = hparams
    _, start, end = records({k: _setting(v) for k, v in settings.items()}, {})
    file = writer._get_file_writer()
    file.add_summary(start)
    file.add_summary(end)


def _setting(value: bool | int | float | str) -> int | float | str:
    # The table shows booleans as 0 and 1, and breaks on numbers that JSON cannot hold.
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
