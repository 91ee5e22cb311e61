"""The tracker's two records: JSON lines and TensorBoard events."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from metalearn.errors import SettingError
from metalearn.tracking import NullTracker, RunTracker, Tracker, band_figures
from metalearn.tracking.band_figures import BandFigures


def _lines(folder: Path) -> list[dict[str, Any]]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def _events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()


def _layout(events: EventAccumulator) -> layout_pb2.Layout:
    newest = events.Tensors("custom_scalars__config__")[-1]
    return layout_pb2.Layout.FromString(newest.tensor_proto.string_val[0])


def _figure() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    return figure


def _steps(tracker: RunTracker, steps: range) -> None:
    for step in steps:
        tracker.scalars(step, {"train/loss": 1 / (1 + step)})


@pytest.mark.parametrize("kind", ["null", "run"])
def test_both_trackers_keep_the_protocol(kind: str, tmp_path: Path) -> None:
    tracker: Tracker = NullTracker() if kind == "null" else RunTracker(tmp_path / "new" / "run")
    assert isinstance(tracker, Tracker)
    tracker.scalars(0, {"a": 1.0})
    tracker.histograms(0, "b", {"w": torch.ones(2)})
    tracker.figure(0, "c", _figure())
    tracker.curves(0, "d", {"e": 1.0})
    tracker.hparams({"f": 1}, {"g": 1.0})
    tracker.flush()
    for _ in range(2):
        tracker.close()
    tracker.flush()
    assert (tmp_path / "new").exists() == (kind == "run")


def test_each_line_is_json_at_once_and_nan_is_null(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path)
    tracker.scalars(0, {"train/loss": math.nan, "train/norm": math.inf, "train/accuracy": 0.5})
    tracker.scalars(10, {"train/loss": torch.tensor(0.25)})  # type: ignore[dict-item]
    first, second = _lines(tmp_path)  # nothing was flushed or closed by hand
    assert first["time"] <= second["time"]
    assert {k: v for k, v in first.items() if k != "time"} == {
        "step": 0,
        "train/loss": None,
        "train/norm": None,
        "train/accuracy": 0.5,
    }
    assert (second["step"], second["train/loss"]) == (10, 0.25)
    tracker.close()
    losses = _events(tmp_path).Scalars("1 overview/loss (training)")
    assert math.isnan(losses[0].value)
    assert (losses[1].step, losses[1].value) == (10, 0.25)


def test_resume_drops_later_lines_and_the_torn_one(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path)
    _steps(tracker, range(6))
    tracker.close()
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 3, "ti')
    tracker = RunTracker(tmp_path, resume_step=3)
    assert [line["step"] for line in _lines(tmp_path)] == [0, 1, 2, 3]
    tracker.scalars(4, {"train/loss": 9.0})
    tracker.close()
    assert [line["step"] for line in _lines(tmp_path)] == [0, 1, 2, 3, 4]
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names[-1] == "metrics.jsonl"
    assert len(names) == 3 and all("tfevents" in name for name in names[:2])
    read = {
        event.step: event.value for event in _events(tmp_path).Scalars("1 overview/loss (training)")
    }
    assert read == pytest.approx({0: 1.0, 1: 1 / 2, 2: 1 / 3, 3: 1 / 4, 4: 9.0})


def test_what_is_recorded_again_is_dropped_at_its_step_alone(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path)
    for step in (2, 4):
        tracker.scalars(step, {"train/loss": 1.0})
        tracker.scalars(step, {"validation/loss": 2.0})
        tracker.curves(step, "validation_by_step", {"k=0": 3.0})
    tracker.close()
    RunTracker(tmp_path, resume_step=4, again=("validation", "best/")).close()
    kept = [(line["step"], list(line)[2]) for line in _lines(tmp_path)]
    names = ["train/loss", "validation/loss", "validation_by_step/k=0"]
    assert kept == [*((2, name) for name in names), (4, "train/loss")]


def test_events_are_on_disk_at_once(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path)
    tracker.scalars(1, {"train/loss": 1.0})
    assert [event.step for event in _events(tmp_path).Scalars("1 overview/loss (training)")] == [1]
    tracker.close()


@pytest.mark.parametrize("torn", [b'{"step": 7, "name": "\xc3', b"[" * 100_000])
def test_continuing_without_resume_step_drops_only_the_torn_line(
    tmp_path: Path, torn: bytes
) -> None:
    tracker = RunTracker(tmp_path)
    _steps(tracker, range(3))
    tracker.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    RunTracker(tmp_path).close()
    assert [line["step"] for line in _lines(tmp_path)] == [0, 1, 2]


def test_a_whole_last_line_without_its_newline_stays(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}')
    tracker = RunTracker(tmp_path, resume_step=5)
    tracker.scalars(2, {})
    tracker.close()
    assert [line["step"] for line in _lines(tmp_path)] == [0, 1, 2]


def test_an_untouched_file_is_not_rewritten(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path)
    _steps(tracker, range(3))
    tracker.close()
    before = (tmp_path / "metrics.jsonl").stat().st_ino
    RunTracker(tmp_path, resume_step=2).close()
    assert (tmp_path / "metrics.jsonl").stat().st_ino == before


def test_negative_resume_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="resume_step=-1: a whole number of at least 0"):
        RunTracker(tmp_path, resume_step=-1)


def test_histograms_leave_out_what_cannot_be_drawn(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path)
    tensors = {
        "weight": torch.linspace(-1, 1, 100, requires_grad=True).reshape(10, 10),
        "half": torch.ones(4, dtype=torch.bfloat16),
        "count": torch.arange(3),
        "flag": torch.tensor(True),
        "empty": torch.zeros(0, 3),
        "nan": torch.tensor([1.0, math.nan]),
        "infinite": torch.tensor([math.inf]),
        "huge": torch.full((3,), 1e30),
        "large": torch.full((3,), 9e19),
    }
    tracker.histograms(5, "parameters", tensors)
    tracker.close()
    events = _events(tmp_path)
    drawn = {"weight", "half", "count", "flag", "large"}
    assert set(events.Tags()["histograms"]) == {f"6 parameters/{leaf}" for leaf in drawn}
    (event,) = events.Histograms("6 parameters/weight")
    assert event.step == 5
    value = event.histogram_value
    assert (value.num, value.min, value.max) == (100, -1.0, 1.0)
    assert value.sum_squares == pytest.approx(float(torch.linspace(-1, 1, 100).square().sum()))


def test_figures_become_pictures(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path)
    tracker.figure(3, "validation/task", _figure())
    tracker.close()
    (event,) = _events(tmp_path).Images("2 validation/one task")
    assert (event.step, event.width, event.height) == (3, 200, 100)
    assert event.encoded_image_string.startswith(b"\x89PNG")


def test_curves_share_a_chart_and_so_do_training_and_validation(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path)
    for step in range(2):
        tracker.curves(step, "validation_by_step", {"accuracy_0": 0.2, "accuracy_1": 0.9})
        tracker.scalars(step, {"train/loss": 1.0})
        tracker.scalars(step, {"validation/nll": 2.0})
    tracker.close()
    events = _events(tmp_path)
    both, curves = _layout(events).category
    assert (both.title, both.chart[0].title) == ("training and validation", "loss")
    (chart,) = curves.chart
    tags = events.Tags()["scalars"]

    def drawn(expressions: Any) -> list[str]:
        return [tag for tag in tags if any(re.match(wanted, tag) for wanted in expressions)]

    assert sorted(drawn(chart.multiline.tag)) == [
        "2 validation/accuracy after 0 inner steps",
        "2 validation/accuracy after 1 inner step",
    ]
    assert sorted(drawn(both.chart[0].multiline.tag)) == [
        "1 overview/loss (training)",
        "1 overview/loss (validation)",
    ]
    assert len(events.Tensors("custom_scalars__config__")) == 3  # one for each that is new
    assert _lines(tmp_path)[0]["validation_by_step/accuracy_0"] == 0.2


def test_bands_are_figures_and_their_ends_no_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn again as they grow, ever more rarely, and at the end with all that there is."""
    monkeypatch.setattr(band_figures, "_SHARE", math.inf)  # however little time goes by
    bands = {"95% confidence intervals": ["train/loss_after", "validation/loss_after"]}
    for first, last in ((0, 40), (40, 60)):
        tracker = RunTracker(tmp_path, bands=bands, resume_step=first)
        for step in range(first + 1, last + 1):
            ends = {"validation/loss_after_low": 0.5, "validation/loss_after_high": 1.5}
            tracker.scalars(step, {"validation/loss_after": 1.0, **ends})
        tracker.close()
    events = _events(tmp_path)
    assert events.Tags()["scalars"] == ["1 overview/loss (validation)"]
    (name,) = events.Tags()["images"]
    assert name == "1 overview/loss, 95% confidence intervals"
    steps = [event.step for event in events.Images(name)]
    assert steps[-1] == 60 and 40 in steps and 4 < len(steps) < 15


@pytest.mark.parametrize(
    ("seconds", "drawn"),
    [(0.0, [2]), (1.0, [2, 35, 68]), (100.0, [2, 3, 5, 8, 12, 18, 27, 41, 62, 93])],
)
def test_bands_wait_where_drawing_them_would_take_more_than_a_small_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, drawn: list[int]
) -> None:
    """A drawing takes a second, and the next one waits until that is 3 % of the time since."""
    now, name, found = [0.0], "validation/loss_after", []
    monkeypatch.setattr(band_figures, "perf_counter", lambda: now[0])
    path = tmp_path / "metrics.jsonl"
    path.touch()
    figures = BandFigures({"": [name]}, path)
    for step in range(1, 101):
        figures.take(step, {name: 1.0, f"{name}_low": 0.5, f"{name}_high": 1.5})
        if figures.due():
            now[0] += 1.0
            figures.drawn()
            found.append(step)
        now[0] += seconds
    assert found == drawn
    assert [step for step, _ in figures.left().values()] == [100]


def test_the_tracker_says_when_bands_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that goes on by a second whenever it is read: at each look, and by each drawing."""
    monkeypatch.setattr(band_figures, "perf_counter", itertools.count().__next__)
    name = "validation/loss_after"
    tracker = RunTracker(tmp_path, bands={"95% confidence intervals": [name]})
    for step in range(1, 41):
        tracker.scalars(step, {name: 1.0, f"{name}_low": 0.5, f"{name}_high": 1.5})
    tracker.close()
    events = _events(tmp_path)
    (tag,) = events.Tags()["images"]
    assert [event.step for event in events.Images(tag)] == [2, 35, 40]


def test_a_run_of_an_earlier_version_goes_on_where_its_events_are(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").mkdir()
    tracker = RunTracker(tmp_path)
    tracker.scalars(1, {"train/loss": 1.0})
    tracker.close()
    assert not list(tmp_path.glob("*tfevents*"))
    assert _events(tmp_path / "tensorboard").Tags()["scalars"] == ["1 overview/loss (training)"]


def test_no_bands_no_layout(tmp_path: Path) -> None:
    RunTracker(tmp_path).close()
    assert _events(tmp_path).Tags()["tensors"] == []


def test_hparams_stand_in_the_run_itself(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path)
    _steps(tracker, range(8))
    settings: dict[str, bool | int | float | str] = {
        "maml/lr": 0.5,
        "task/way": 5,
        "first_order": True,
        "max_norm": math.inf,
        "model": "conv4",
    }
    tracker.hparams(settings, {"test/accuracy": 0.75})
    tracker.close()
    assert len(list(tmp_path.glob("*tfevents*"))) == 1
    assert not any(path.is_dir() for path in tmp_path.iterdir())  # no run within the run
    events = _events(tmp_path)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    values = {k: v.string_value or v.number_value for k, v in start.hparams.items()}
    assert values == settings | {"first_order": "true", "max_norm": "inf"}
    assert events.SummaryMetadata("_hparams_/session_end_info").plugin_data.content
    # With an "experiment" TensorBoard would show the columns of this run alone.
    with pytest.raises(KeyError, match="experiment"):
        events.SummaryMetadata("_hparams_/experiment")
    (result,) = events.Scalars("8 test and findings/accuracy (test)")
    assert (result.step, result.value) == (7, 0.75)
    assert _lines(tmp_path)[-1]["test/accuracy"] == 0.75


def test_results_of_a_resumed_run_stand_at_its_last_step(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path)
    _steps(tracker, range(8))
    tracker.close()
    tracker = RunTracker(tmp_path, resume_step=5)
    tracker.hparams({"way": 5}, {"test/accuracy": 0.5})
    tracker.close()
    assert _lines(tmp_path)[-1]["step"] == 5
    assert _events(tmp_path).Scalars("8 test and findings/accuracy (test)")[0].step == 5


def test_a_closed_tracker_takes_nothing_more(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path)
    tracker.close()
    with pytest.raises(ValueError, match="closed file"):
        tracker.scalars(1, {"a": 1.0})
    assert _lines(tmp_path) == []
