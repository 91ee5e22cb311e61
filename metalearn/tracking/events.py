"""TensorBoard's event files, written so that a failing disk costs records and not the training.

Axes: none.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from metalearn.files import append_whole

__all__ = ["EventWriter"]

log = logging.getLogger(__name__)


class EventWriter(SummaryWriter):
    """A `SummaryWriter` that writes each event at once, in the calling thread.

    TensorBoard's own writer has a thread for that, which dies with a traceback where the disk fails
    and takes the training with it. Here a failure is one warning, and later events are dropped.

    Args:
        folder: of the event file, made if missing.
        purge_step: events of earlier files from this step on are not shown; None shows all.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        self._events = _EventFile(folder)
        if purge_step is not None:
            self._events.add_event(Event(file_version="brain.Event:2"), purge_step)
            start = Event(session_log=SessionLog(status=SessionLog.START))
            self._events.add_event(start, purge_step)
        super().__init__(str(folder))

    def _get_file_writer(self) -> Any:
        self.file_writer: Any = self._events
        self.all_writers: Any = {self.log_dir: self._events}
        return self._events


class _EventFile:
    """What `SummaryWriter` asks of its file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: FileIO | None = None
        self._try(self._open)
        self.add_event(Event(file_version="brain.Event:2"))

    def get_logdir(self) -> str:
        return str(self._folder)

    def add_event(self, event: Any, step: int | None = None, walltime: float | None = None) -> None:
        event.wall_time = time.time() if walltime is None else walltime
        if step is not None:
            event.step = int(step)
        self._try(lambda: RecordWriter(self).write(event.SerializeToString()))

    def add_summary(
        self, summary: Any, global_step: int | None = None, walltime: float | None = None
    ) -> None:
        self.add_event(Event(summary=summary), global_step, walltime)

    def write(self, record: bytes) -> None:
        if self._file is not None:
            append_whole(self._file, record)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names.
        seconds, rest = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{rest:09d}.{os.getpid()}"
        self._file = FileIO(self._folder / name, "xb")

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self.close()
            log.warning(
                "%s: no further records for TensorBoard, %s; the training goes on",
                self._folder,
                error.strerror or error,
            )
