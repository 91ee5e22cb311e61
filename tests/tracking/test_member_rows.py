"""One row of TensorBoard's HParams table for each member."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from metalearn.errors import SettingError
from metalearn.tracking import NullTracker, RunTracker, Tracker
from tests.support.builders import Recorder

SETTINGS = [{"seed": m, "lr": 10.0**-m, "augment": m % 2 == 0, "name": "a"} for m in range(3)]
RESULTS = [{"test/accuracy": 0.5 + m / 8, "test/nll": 1.0 / (1 + m)} for m in range(3)]


SHOWN = {
    "test/accuracy": "8 test and findings/accuracy (test)",
    "test/nll": "8 test and findings/loss (test)",
}


def _row(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    settings = {k: v.string_value or v.number_value for k, v in start.hparams.items()}
    assert events.SummaryMetadata("_hparams_/session_end_info").plugin_data.content
    # With an "experiment" TensorBoard would show the columns of this member alone.
    with pytest.raises(KeyError, match="experiment"):
        events.SummaryMetadata("_hparams_/experiment")
    scalars = {}
    for tag in events.Tags()["scalars"]:
        (event,) = events.Scalars(tag)
        scalars[tag] = (event.step, event.value)
    return settings, scalars


def test_each_member_is_a_run_with_its_settings_and_results(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path)
    tracker.scalars(7, {"train/loss": 1.0})
    tracker.hparams({"members": 3}, {"test/accuracy": 0.9})
    tracker.member_hparams(SETTINGS, RESULTS)
    tracker.close()
    for m in range(3):
        settings, scalars = _row(tmp_path / f"member_0{m}")
        augment = "true" if m % 2 == 0 else "false"
        differing = {name: value for name, value in SETTINGS[m].items() if name != "name"}
        assert settings == differing | {"member": m, "augment": augment}
        assert scalars == {
            SHOWN[name]: (7, pytest.approx(value)) for name, value in RESULTS[m].items()
        }
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line.pop("step") == 7 and line.pop("time")
    assert line == {f"member_0{m}/{k}": v for m in range(3) for k, v in RESULTS[m].items()}
    main = EventAccumulator(str(tmp_path)).Reload()
    assert set(main.Tags()["scalars"]) == {  # its own alone
        "1 overview/loss (training)",
        "8 test and findings/accuracy (test)",
    }


def test_a_second_call_replaces_the_rows(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path)
    tracker.member_hparams(SETTINGS, RESULTS)
    tracker.scalars(9, {})
    tracker.close()
    tracker = RunTracker(tmp_path, resume_step=9)
    tracker.member_hparams(SETTINGS[:2], [{"test/nll": 0.25}, {"test/nll": math.nan}])
    tracker.close()
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert [folder.name for folder in folders] == ["member_00", "member_01"]
    assert all(len(list(folder.iterdir())) == 1 for folder in folders)
    assert _row(folders[0])[1] == {"8 test and findings/loss (test)": (9, 0.25)}
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["member_01/test/nll"] is None


def test_members_sort_by_name(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path)
    tracker.member_hparams([{"lr": 0.1 * m} for m in range(101)], [{}] * 101)
    tracker.close()
    names = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert names == [f"member_{m:03}" for m in range(101)]


def test_members_that_differ_in_seeds_alone_are_no_runs(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path)
    tracker.member_hparams([{"seed": m, "label_smoothing": 0.0} for m in range(3)], RESULTS)
    tracker.close()
    assert not any(path.is_dir() for path in tmp_path.iterdir())
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["member_02/test/nll"] == RESULTS[2]["test/nll"]


def test_as_many_results_as_settings_are_needed(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path)
    with pytest.raises(SettingError, match="number of results=2: one for each of the 3 members"):
        tracker.member_hparams(SETTINGS, RESULTS[:2])
    tracker.close()


def test_other_trackers_take_rows_as_well() -> None:
    recorder = Recorder()
    for tracker in (NullTracker(), recorder):
        assert isinstance(tracker, Tracker)
        tracker.member_hparams(SETTINGS, RESULTS)
    assert recorder.rows == list(zip(SETTINGS, RESULTS))
