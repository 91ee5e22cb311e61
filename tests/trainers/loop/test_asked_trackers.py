"""Trainers take trackers by name: they begin with the training, in its folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from metalearn.errors import SettingError
from metalearn.tracking import NullTracker, RunTracker, TrackerBackend
from tests.contracts.trainers import TRAINERS
from tests.support.builders import Scripted
from tests.support.rank_threads import ThreadRanks, on_ranks

CADENCE: dict[str, Any] = {"eval_every": 2, "log_every": 1, "checkpoint_every": 2}
CADENCE |= {"progress": False}


class Counting(TrackerBackend):
    """Knows which steps it was told of, and with which settings it was made."""

    made: list[Counting]

    def __init__(self, run: Any) -> None:
        self.run, self.steps = run, []  # type: ignore[var-annotated]
        self.made.append(self)

    def scalars(self, step: int, time: float, values: Mapping[str, float]) -> None:
        self.steps += [step] if "train/loss" in values else []


def _steps(folder: Path) -> list[int]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["name"] == "train/loss"]


def test_a_name_begins_with_the_training_and_goes_on(tmp_path: Path) -> None:
    trainer = Scripted(steps=4, folder=tmp_path, tracker="csv", **CADENCE)
    assert isinstance(trainer.tracker, NullTracker) and not list(tmp_path.iterdir())
    trainer.fit()
    assert isinstance(trainer.tracker, RunTracker)
    trainer.tracker.close()
    assert _steps(tmp_path) == [1, 2, 3, 4]
    with (tmp_path / "metrics.jsonl").open("a") as file:  # of steps that no checkpoint has
        file.write(json.dumps({"step": 5, "time": 1.0, "train/loss": 9.0}) + "\n")
    again = Scripted(steps=6, folder=tmp_path, tracker=["csv"], **CADENCE)
    again.resume(tmp_path / "checkpoints" / "last.pt")
    again.fit()
    again.tracker.close()
    assert _steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_class_of_ones_own_in_a_list(tmp_path: Path) -> None:
    Counting.made = []
    trainer = Scripted(steps=3, folder=tmp_path, tracker=["tensorboard", Counting], **CADENCE)
    trainer.fit()
    trainer.tracker.close()
    (own,) = Counting.made
    assert own.steps == [1, 2, 3] and own.run.settings["steps"] == 3
    assert list(tmp_path.glob("*tfevents*")) and not (tmp_path / "metrics.csv").exists()


def test_a_name_is_set_later_too(tmp_path: Path) -> None:
    trainer = Scripted(steps=2, folder=tmp_path, **CADENCE)
    trainer.tracker = "csv"
    trainer.fit()
    trainer.tracker.close()
    assert _steps(tmp_path) == [1, 2]


@pytest.mark.parametrize(
    ("tracker", "said"),
    [
        ("runs/a", r"tracker='runs/a': one of tensorboard, .*such as RunTracker\('runs/a'\)"),
        ("csvs", "did you mean csv"),
        (["csv", "x"], r"tracker=\['csv', 'x'\]: one of tensorboard, csv, wandb, mlflow"),
        ([], "at least one of"),
        ("csv", "tracker='csv': the folder of the run is needed beside it"),
    ],
)
def test_what_names_nothing_is_refused(tracker: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=said):
        Scripted(steps=2, tracker=tracker, folder=None, **CADENCE)
    trainer = Scripted(steps=2, **CADENCE)
    with pytest.raises(SettingError, match=said):
        trainer.tracker = tracker


def test_the_first_rank_alone_writes(tmp_path: Path) -> None:
    Counting.made = []

    def run(ranks: ThreadRanks) -> Any:
        asked = ["csv", Counting]
        make = TRAINERS["per_sample"]
        trainer = ranks.made(make, **CADENCE, steps=2, folder=tmp_path, tracker=asked)
        trainer.fit()
        trainer.tracker.close()
        return type(trainer.tracker)

    assert on_ranks(2, run) == [RunTracker, NullTracker]
    assert len(Counting.made) == 1 and _steps(tmp_path) == [1, 2]
