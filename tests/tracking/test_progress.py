"""The progress bar on a fake terminal, and its silence elsewhere."""

from __future__ import annotations

import io
import os
import threading

import pytest
from tqdm import tqdm

from metalearn.tracking import Progress
from metalearn.tracking.progress import shown_stretch


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_silent_when_not_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    stream, before = io.StringIO(), threading.active_count()
    with Progress(10, stream=stream) as bar, Progress(10) as default:
        for each in (bar, default):
            each.update(3, loss=0.5)
            each.write("hello")
        assert not bar.enabled
    assert stream.getvalue() == ""
    assert capsys.readouterr() == ("", "")
    assert threading.active_count() == before


def test_a_terminal_sees_numbers_in_compact_form() -> None:
    stream = _Terminal()
    with Progress(20, stream=stream, interval=0) as bar:
        bar.update(
            5, loss=0.51234, accuracy=0.8734, accuracy_after=0.99, tasks_per_s=1234.5, steps=2e6
        )
    text = stream.getvalue()
    assert "5/20" in text
    assert " 25%" in text
    assert "left" in text
    assert "loss 0.512, accuracy 87.3 %, accuracy after 99.0 %, tasks/s 1.23k, steps 2M" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (float("nan"), "NaN"),
        (float("-inf"), "-inf"),
        (3e-7, "3e-07"),
        (-1500.0, "-1.5k"),
        (2e12, "2e+12"),
        (999.99, "1e+03"),
    ],
)
def test_number_formats(value: float, shown: str) -> None:
    stream = _Terminal()
    with Progress(1, stream=stream) as bar:
        bar.update(loss=value)
    assert f"loss {shown}" in stream.getvalue().splitlines()[-1]


def test_resumed_bar_starts_where_the_run_stopped() -> None:
    stream = _Terminal()
    with Progress(100, 40, stream=stream) as bar:
        bar.update()
    assert "40/100" in stream.getvalue()
    assert "41/100" in stream.getvalue()


def test_redraws_are_throttled_but_the_last_numbers_show() -> None:
    stream = _Terminal()
    with Progress(1000, stream=stream, interval=60) as bar:
        for step in range(1000):
            bar.update(loss=float(step))
    drawings = stream.getvalue().count("\r")
    assert drawings <= 4
    assert "1000/1000" in stream.getvalue()
    assert "loss 999" in stream.getvalue()


def test_numbers_stay_until_replaced() -> None:
    stream = _Terminal()
    with Progress(3, stream=stream, interval=0) as bar:
        bar.update(loss=0.25)
        bar.update()
    assert "loss 0.25" in stream.getvalue().split("\r")[-1]


def test_written_lines_stand_alone() -> None:
    stream = _Terminal()
    with Progress(4, stream=stream, interval=0) as bar:
        bar.update(loss=1.0)
        bar.write("validation: 95.2%")
        bar.update(loss=0.5)
    lines = [line.split("\r")[-1] for line in stream.getvalue().split("\n")]
    assert "validation: 95.2%" in lines


def test_enabled_overrides_the_stream_and_close_is_idempotent() -> None:
    loud, quiet = io.StringIO(), _Terminal()
    bar = Progress(2, enabled=True, stream=loud)
    bar.update(2, loss=0.5)
    bar.close()
    length = len(loud.getvalue())
    bar.close()
    bar.update(1)
    assert len(loud.getvalue()) == length > 0
    with Progress(2, enabled=False, stream=quiet) as off:
        off.update()
    assert quiet.getvalue() == ""


def test_an_error_inside_closes_the_bar() -> None:
    stream = _Terminal()
    with pytest.raises(KeyError, match="gone"), Progress(3, stream=stream) as bar:
        bar.update()
        raise KeyError("gone")
    assert stream.getvalue().endswith("\n")
    assert not tqdm._instances


def test_a_closed_stream_is_no_terminal() -> None:
    stream = io.StringIO()
    stream.close()
    assert not Progress(3, stream=stream).enabled


def test_without_a_terminal_the_log_says_now_and_then_how_much_is_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("metalearn.tracking.progress.time.monotonic", lambda: clock[0])
    caplog.set_level("INFO", logger="metalearn")
    with Progress(110, 10, stream=io.StringIO()) as bar:
        for _ in range(100):
            clock[0] += 1.0
            bar.update(1, loss=0.5)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "step 40/110: 01:10 left, loss 0.5",
        "step 70/110: 00:40 left, loss 0.5",
        "step 100/110: 00:10 left, loss 0.5",
    ]
    caplog.clear()
    with Progress(100, stream=io.StringIO(), enabled=False) as bar:
        clock[0] += 1000.0
        bar.update(1, loss=0.5)
    assert not caplog.records


def test_a_stretch_is_shown_once_it_takes_long_and_goes_when_it_is_done() -> None:
    for seconds, drawn in ((0.0, False), (10.0, True)):
        stream = _Terminal()
        with Progress(4, stream=stream, interval=0, what="test", unit="tasks") as bar:
            assert bar._bar is not None
            bar._bar.start_t -= seconds
            bar.update(3)
        text = stream.getvalue()
        assert ("test:  75%" in text and "3/4 tasks [" in text) is drawn
        assert not text.rpartition("\r")[2].strip()


def test_without_a_terminal_a_stretch_is_told_of_in_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, lines = [100.0], list[str]()
    monkeypatch.setattr("metalearn.tracking.progress.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with shown_stretch("test", 100, "tasks", say=lines.append) as tell:
        for _ in range(10):
            clock[0] += 10.0
            tell(10)
    assert lines == [
        "test: 30/100 tasks: 01:10 left",
        "test: 60/100 tasks: 00:40 left",
        "test: 90/100 tasks: 00:10 left",
    ]


def test_a_terminal_without_columns_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((0, 0)))
    stream = _Terminal()
    monkeypatch.setattr(stream, "fileno", lambda: 2)
    with Progress(4, stream=stream, interval=0) as bar:
        bar.update(1)
    assert "1/4" in stream.getvalue()
