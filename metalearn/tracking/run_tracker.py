"""A run's numbers and pictures: JSON lines in its folder, and wherever else it was asked for.

Axes: none; a step is one outer (meta) step, counted from 0 over all resumptions.
"""

from __future__ import annotations

import json
import logging
import sys
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
from metalearn.tracking.backends import (
    DEFAULT_TRACKER,
    RunFacts,
    TrackerBackend,
    backends_of,
    check_backends,
)
from metalearn.tracking.band_figures import BandFigures
from metalearn.tracking.metric_lines import kept_lines
from metalearn.tracking.provenance import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RunTracker"]

log = logging.getLogger(__name__)

_LARGEST = 1e20  # the outermost bin of TensorBoard's histograms


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

    A disk that fails for TensorBoard's events costs these: a warning is logged once, as for
    other places than ``metrics.jsonl``. One that fails there is an error, and leaves no part of
    the line.

    Args:
        folder: the run's folder, made if missing.
        resume_step: the last step whose records stay; None keeps all.
        again: beginnings of names that will be recorded once more at ``resume_step`` itself; its
            lines with such a name are dropped as well.
        bands: title to names of scalars with companions ``<name>_low`` and ``<name>_high``, the
            ends of a band; each is drawn over the training, with training and validation in one
            figure. The first of all stands in TensorBoard's first section.
        tracker: where records go beside ``metrics.jsonl``: ``"tensorboard"``, ``"csv"``,
            ``"wandb"``, ``"mlflow"``, a `TrackerBackend` of your own, as class or object, a list
            of these, or None.
        settings: of the run, by dotted names, for those that keep them from the beginning.

    Raises:
        SettingError: a negative ``resume_step``; a tracker that is not known, lacks its package
            or cannot begin.
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
        tracker: Any = DEFAULT_TRACKER,
        settings: Mapping[str, bool | int | float | str] | None = None,
    ) -> None:
        if resume_step is not None:
            check_whole("resume_step", resume_step, 0)
        check_backends(tracker)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = folder / "metrics.jsonl"
        records = kept_lines(self._metrics, resume_step, again)
        self._lines = self._metrics.open("ab", buffering=0)
        facts = RunFacts(folder, dict(settings or {}), resume_step, tuple(again), records)
        try:
            self._backends = backends_of(tracker, facts)
        except BaseException:
            self._lines.close()
            raise
        self._last_step = max((record["step"] for record in records), default=0)
        self._bands = BandFigures(bands or {}, self._metrics)

    @checked
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one JSON line, and each number to TensorBoard under the name it has there."""
        check_whole("step", step, 0)
        when, numbers = self._line(step, values)
        self._tell(lambda backend: backend.scalars(step, when, numbers))
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
        for leaf, tensor in tensors.items() if self._backends else ():  # may be made one by one
            check_tensors({leaf: tensor}, "tensors")
            self._histogram(step, f"{name}/{leaf}", tensor)

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Draw the figure into TensorBoard's Images and close it."""
        self._tell(lambda backend: backend.figure(step, name, figure))

    @checked
    def curves(self, step: int, name: str, values: Mapping[str, float]) -> None:
        """Write scalars ``<name>/<key>``; the Custom Scalars tab shows them in one chart."""
        self.scalars(step, {f"{name}/{key}": value for key, value in values.items()})
        names = [f"{name}/{key}" for key in values]
        self._tell(lambda backend: backend.chart(name, names))

    def hparams(
        self, settings: Mapping[str, bool | int | float | str], results: Mapping[str, float]
    ) -> None:
        """Make this run one row of TensorBoard's HParams table.

        The results are scalars of the last step seen (so they stand in the JSON lines too). Only
        the first call's settings count.
        """
        self._tell(lambda backend: backend.hparams(settings))
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
        if len(settings) != len(results):
            accepted = f"one for each of the {len(settings)} members is needed"
            raise SettingError("number of results", len(results), accepted)
        step, digits = self._last_step, max(2, len(str(len(settings) - 1)))
        named = {f"member_{index:0{digits}}": row for index, row in enumerate(results)}
        when, _ = self._line(
            step, {f"{n}/{k}": v for n, row in named.items() for k, v in row.items()}
        )
        self._tell(lambda backend: backend.member_hparams(step, when, settings, named))

    def flush(self) -> None:
        """Bring everything recorded so far to disk."""
        if not self._lines.closed:
            self._tell(lambda backend: backend.flush())

    def close(self) -> None:
        """Flush and close all files; a second call does nothing.

        Inside a ``finally`` that an error leads through, other places hear that the run failed or,
        of KeyboardInterrupt and SystemExit, that it was stopped.
        """
        if not self._lines.closed:
            error = sys.exc_info()[1]
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            ending = "finished" if error is None else "stopped" if stopped else "failed"
            self._draw_bands(self._bands.left())
            self._lines.close()
            self._tell(lambda backend: backend.close(ending))

    def _tell(self, call: Callable[[TrackerBackend], None]) -> None:
        """Call each backend; one that fails in a way that it names is told nothing more."""
        for backend in tuple(self._backends):
            try:
                call(backend)
            except backend.failures as error:
                self._backends.remove(backend)
                said = getattr(error, "strerror", None) or error
                log.warning(
                    "%s: no further records for tracker=%s, %s; the training goes on",
                    self._metrics.parent,
                    backend.name,
                    said,
                )

    def _histogram(self, step: int, name: str, tensor: Tensor) -> None:
        # In float64 the sum of squares that TensorBoard stores cannot overflow.
        values = tensor.detach().to("cpu").to(torch.float64).flatten()
        if values.numel() and bool((values.abs() < _LARGEST).all()):
            self._tell(lambda backend: backend.histogram(step, name, values.numpy()))

    def _draw_bands(self, figures: Mapping[str, tuple[int, Figure]]) -> None:
        def tell(backend: TrackerBackend) -> None:
            for tag, (step, figure) in figures.items():
                backend.band_figure(step, tag, figure)

        if figures:
            self._tell(tell)
            self._bands.drawn()

    def _line(self, step: int, values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        """Write a line of ``metrics.jsonl``; its time and numbers."""
        numbers = {name: float(value) for name, value in values.items()}
        when = round(time.time(), 3)
        record = plain({"step": step, "time": when, **numbers})
        with failures_named(self._metrics):
            append_whole(self._lines, json.dumps(record, allow_nan=False).encode() + b"\n")
        return when, numbers
