"""What each backend of a tracker has kept, read by other means than it was written by.

Axes: none.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metalearn.tracking.backends.tensorboard_events import event_folder
from metalearn.tracking.dashboard import shown_as

_BLOCK, _HEADER = 32768, 7  # of LevelDB's log format, after one header of seven bytes


class Kept(NamedTuple):
    """Numbers by step and value, of one name; how many pictures; the run's identity if any."""

    numbers: list[tuple[int, float]]
    pictures: int
    identity: str | None


def _tensorboard(folder: Path, name: str) -> Kept:
    events = EventAccumulator(str(event_folder(folder)), size_guidance={"images": 0}).Reload()
    tag, tags = shown_as(name), events.Tags()
    numbers = [(e.step, e.value) for e in events.Scalars(tag)] if tag in tags["scalars"] else []
    return Kept(numbers, sum(len(events.Images(image)) for image in tags["images"]), None)


def _csv(folder: Path, name: str) -> Kept:
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(None not in row.values() and None not in row for row in rows)  # four cells in each
    numbers = [(int(row["step"]), float(row["value"])) for row in rows if row["name"] == name]
    return Kept(numbers, 0, None)


def _wandb(folder: Path, name: str) -> Kept:
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    files.sort(key=lambda path: (path.stat().st_mtime, path))
    end = time.monotonic() + 2  # its own process goes on writing for a moment
    while "exit" not in dict(_wandb_records(files[-1])) and time.monotonic() < end:
        time.sleep(0.02)
    numbers = []
    for file in files:
        for kind, record in _wandb_records(file):
            if kind == "history":
                items = record.history.item
                row = {i.key or ".".join(i.nested_key): i.value_json for i in items}
                if name in row:
                    numbers.append((int(row["step"]), float(json.loads(row[name]))))
    pictures = list(folder.glob("wandb/offline-run-*/files/media/images/**/*.png"))
    identities = {file.stem.removeprefix("run-") for file in files}
    assert len(identities) == 1
    return Kept(numbers, len(pictures), identities.pop())


def _wandb_records(file: Path) -> Iterator[tuple[str, Any]]:
    """Kind and content of each."""
    from wandb.proto.wandb_internal_pb2 import Record

    for data in _log_records(file.read_bytes()):
        record = Record.FromString(data)
        yield record.WhichOneof("record_type"), record


def _log_records(data: bytes) -> Iterator[bytes]:
    """Records of LevelDB's log format; a torn one ends it."""
    place, part = _HEADER, b""
    while place + _HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        piece = data[place + _HEADER : place + _HEADER + size]
        if len(piece) < size or kind == 0:
            return
        place, part = place + _HEADER + size, part + piece
        if kind in (1, 4):  # whole, or the last piece
            yield part
            part = b""


def _mlflow(folder: Path, name: str) -> Kept:
    from mlflow.tracking import MlflowClient

    client: Any = MlflowClient()
    identity = (folder / "mlflow-run-id.txt").read_text().strip()
    history = client.get_metric_history(identity, name)
    pictures, places = 0, [None]
    while places:
        for entry in client.list_artifacts(identity, places.pop()):
            pictures += entry.path.endswith(".png")
            places += [entry.path] if entry.is_dir else []
    return Kept([(m.step, m.value) for m in history], pictures, identity)


READERS: dict[str, Callable[[Path, str], Kept]] = {
    "tensorboard": _tensorboard,
    "csv": _csv,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
CUT = ("tensorboard", "csv")
"""Those from which records after a checkpoint can be taken back."""
DRAWING = ("tensorboard", "wandb", "mlflow")


def offline(store: Path) -> dict[str, str]:
    """The environment in which no backend asks a network.

    Args:
        store: MLflow's, a file of SQLite.
    """
    return {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "PATH": os.environ.get("PATH", ""),
    }
