"""Every backend by name: the same records, gone on with, not finite, killed; and one's own."""

from __future__ import annotations

import csv
import importlib.util
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from metalearn.errors import SettingError
from metalearn.tracking import RunFacts, RunTracker, TrackerBackend
from metalearn.tracking.backends import BACKENDS, check_backends
from tests.support.commands import ROOT
from tests.support.tracker_readers import CUT, DRAWING, READERS, offline

pytestmark = pytest.mark.filterwarnings("ignore")  # of wandb and mlflow, and what they import

LARGEST = sys.float_info.max
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, whose making takes seconds."""
    store = tmp_path_factory.mktemp("store") / "mlflow.db"
    if importlib.util.find_spec("mlflow") is not None:
        code = "from mlflow.tracking import MlflowClient; MlflowClient().search_experiments()"
        environment = {**os.environ, **offline(store)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=store.parent, capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode()
    return store


@pytest.fixture(params=list(BACKENDS))
def name(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    empty_store: Path,
) -> str:
    """Each backend by its name, where its package is there, without a network."""
    found: str = request.param
    package = BACKENDS[found].package
    if package is not None:
        reason = f"tracker={found} needs its extra: pip install 'torch-metalearn[{found}]'"
        pytest.importorskip(package, reason=reason)
    if found == "mlflow":
        shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    for key, value in offline(tmp_path / "mlflow.db").items():
        monkeypatch.setenv(key, value)
    return found


def _figure() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    return figure


def _log(tracker: RunTracker, steps: range, factor: float = 1.0) -> None:
    for step in steps:
        tracker.scalars(step, {"train/loss": factor * step, "train/learning_rate": 0.5})


def test_each_has_a_reader_and_an_extra() -> None:
    assert set(READERS) == set(BACKENDS)
    assert all(kind.name == name for name, kind in BACKENDS.items())
    extras = (ROOT / "pyproject.toml").read_text()
    for kind in BACKENDS.values():
        if kind.package is not None:
            assert re.search(rf'^{kind.name} = \[\n    "{kind.package}>=', extras, re.MULTILINE)


def test_the_same_numbers_and_pictures(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tracker = RunTracker(folder, tracker=name, settings={"trainer.steps": 3, "task.way": "None"})
    _log(tracker, range(1, 4))
    tracker.curves(3, "validation_by_step", {"loss_0": 2.5})
    tracker.histograms(
        3, "weights", {"w": torch.linspace(0, 1, 9), "nan": torch.tensor([math.nan])}
    )
    tracker.figure(3, "validation/task", _figure())
    tracker.hparams({"seed": 0}, {"test/loss": 4.0})
    tracker.member_hparams([{"lr": 0.1}, {"lr": 0.2}], [{"test/loss": 1.0}, {"test/loss": 2.0}])
    for _ in range(2):
        tracker.close()
    kept = READERS[name](folder, "train/loss")
    assert kept.numbers == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert kept.pictures == (name in DRAWING)
    assert READERS[name](folder, "validation_by_step/loss_0").numbers == [(3, 2.5)]
    assert READERS[name](folder, "test/loss").numbers == [(3, 4.0)]
    if name != "tensorboard":  # which has a run of its own for each member
        assert READERS[name](folder, "member_01/test/loss").numbers == [(3, 2.0)]


def test_numbers_that_are_not_finite(name: str, tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path / "run", tracker=name)
    for step, value in enumerate(NOT_FINITE.values(), 1):
        tracker.scalars(step, {"train/loss": value})
    tracker.close()
    found = [value for _, value in READERS[name](tmp_path / "run", "train/loss").numbers]
    ends = (LARGEST, -LARGEST) if name == "mlflow" else (math.inf, -math.inf)  # SQL has no infinity
    assert math.isnan(found[0]) and tuple(found[1:]) == ends


def test_a_run_that_goes_on(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tracker = RunTracker(folder, tracker=name)
    _log(tracker, range(1, 7))
    tracker.close()
    first = READERS[name](folder, "train/loss").identity
    tracker = RunTracker(folder, tracker=name, resume_step=4, settings={"trainer.steps": 8})
    _log(tracker, range(5, 9), factor=10.0)
    tracker.close()
    kept = READERS[name](folder, "train/loss")
    assert kept.identity == first
    wanted = {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: 50.0, 6: 60.0, 7: 70.0, 8: 80.0}
    assert dict(kept.numbers) == wanted
    assert len(kept.numbers) == len(wanted) + (0 if name in CUT else 2)


KILLED = """
import os, signal, sys
from metalearn.tracking import RunTracker
tracker = RunTracker("run", tracker=sys.argv[1])
for step in range(1, 4):
    tracker.scalars(step, {"train/loss": 1.0 * step})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_that_is_killed_has_its_records(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("WANDB_SERVICE", None)  # or it would share this process's, which lives on
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    wanted = [(1, 1.0), (2, 2.0), (3, 3.0)]
    before = READERS[name](tmp_path / "run", "train/loss")
    if name == "wandb":  # whose own process writes in blocks, and dies with this one
        wanted = wanted[: len(before.numbers)]
    assert before.numbers == wanted
    tracker = RunTracker(tmp_path / "run", tracker=name, resume_step=3)
    tracker.scalars(4, {"train/loss": 4.0})
    tracker.close()
    after = READERS[name](tmp_path / "run", "train/loss")
    assert after.numbers == [*wanted, (4, 4.0)]
    assert after.identity == before.identity


def test_endings_are_told(name: str, tmp_path: Path) -> None:
    if name != "mlflow":
        pytest.skip("of MLflow's store alone the ending can be read")
    from mlflow.tracking import MlflowClient

    for error, status in ((None, "FINISHED"), (SystemExit(130), "KILLED"), (OSError(), "FAILED")):
        folder = tmp_path / str(status)
        tracker = RunTracker(folder, tracker=name)
        try:
            if error is not None:
                raise error
        except BaseException:
            tracker.close()
        tracker.close()
        identity = (folder / "mlflow-run-id.txt").read_text().strip()
        assert MlflowClient().get_run(identity).info.status == status


def test_settings_are_kept(name: str, tmp_path: Path) -> None:
    if name not in ("wandb", "mlflow"):
        pytest.skip("these have no place for settings but a table of results")
    tracker = RunTracker(tmp_path / "mine", tracker=name, settings={"trainer.steps": 3})
    tracker.hparams({"trainer.steps": 5, "seed": 1}, {})
    if name == "wandb":
        run = tracker._backends[0]._run  # type: ignore[attr-defined]
        assert run.name == "mine" and dict(run.config) == {"trainer.steps": 5, "seed": 1}
        tracker.close()
        return
    tracker.close()
    from mlflow.tracking import MlflowClient

    run = MlflowClient().get_run((tmp_path / "mine" / "mlflow-run-id.txt").read_text().strip())
    assert run.info.run_name == "mine"
    assert run.data.params == {"trainer.steps": "3", "seed": "1"}
    assert run.data.tags["changed.trainer.steps"] == "5"


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tracker", "said"),
    [
        ("csvs", "tracker='csvs': one of tensorboard, csv, wandb, mlflow, .*did you mean csv?"),
        (["csv", "csv"], "csv is there twice"),
        ([], r"tracker=\[\]: at least one of tensorboard"),
        ("", "tracker='': one of tensorboard"),
        (3, "tracker=3: one of tensorboard"),
        ([["csv"]], r"tracker=\[\['csv'\]\]: one of"),
        ({"csv": 1}, "one of tensorboard"),
        (True, "tracker=True: one of"),
        (int, "one of tensorboard"),
    ],
)
def test_what_is_no_backend(tracker: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=said):
        RunTracker(tmp_path / "run", tracker=tracker)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [n for n, kind in BACKENDS.items() if kind.package is not None])
def test_a_package_that_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = rf"^tracker='{name}': the package \w+ is needed.*pip install 'torch-metalearn\[{name}\]'"
    with pytest.raises(SettingError, match=said):
        check_backends(["csv", name])
    check_backends("csv")


def test_no_package_is_imported_before_it_is_used(tmp_path: Path) -> None:
    code = (
        "import sys; import metalearn.cli.commands.train;"
        "from metalearn.tracking import RunTracker;"
        f"RunTracker({str(tmp_path / 'run')!r}, tracker='csv').close();"
        "sys.exit(bool({'wandb', 'mlflow', 'tensorboard'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


# --- the table -----------------------------------------------------------------------------------


def _rows(folder: Path) -> list[list[str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_the_table_is_long_and_a_torn_row_goes(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path, tracker="csv")
    tracker.scalars(1, {"train/loss": math.inf, 'own "name", quoted': -0.25})
    tracker.scalars(1, {})
    (head, first, second) = _rows(tmp_path)  # nothing was flushed or closed by hand
    assert head == ["step", "time", "name", "value"]
    assert (first[2:], second[2:]) == (["train/loss", "inf"], ['own "name", quoted', "-0.25"])
    tracker.scalars(2, {"train/loss": 0.5})
    tracker.close()
    assert not list(tmp_path.glob("*tfevents*"))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("3,17600")
    RunTracker(tmp_path, tracker="csv", resume_step=1).close()
    assert _rows(tmp_path) == [head, first, second]
    assert (tmp_path / "metrics.csv").read_bytes().endswith(b"\n")


def test_the_table_of_a_run_that_had_none_begins_with_it(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path)
    _log(tracker, range(1, 4))
    tracker.scalars(4, {"train/loss": math.inf})
    tracker.scalars(4, {"validation/loss": 1.0})
    tracker.close()
    RunTracker(tmp_path, tracker="csv", resume_step=4, again=("validation",)).close()
    rows = [(row[0], row[2], row[3]) for row in _rows(tmp_path)[1:]]
    assert rows[:2] == [("1", "train/loss", "1.0"), ("1", "train/learning_rate", "0.5")]
    assert rows[-1] == ("4", "train/loss", "nan")  # JSON lines do not know which it was


def test_an_untouched_table_is_not_rewritten(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path, tracker="csv")
    tracker.scalars(1, {"train/loss": math.inf, "b": 1.0})
    tracker.close()
    before = (tmp_path / "metrics.csv").stat().st_ino
    RunTracker(tmp_path, tracker="csv", resume_step=1).close()
    assert (tmp_path / "metrics.csv").stat().st_ino == before


# --- one's own -----------------------------------------------------------------------------------


class Mine(TrackerBackend):
    """Remembers what it was told."""

    failures = (ConnectionError,)

    def __init__(self, run: RunFacts) -> None:
        self.run, self.told, self.ended = run, [], ""  # type: ignore[var-annotated]
        self.error: Exception | None = None

    def scalars(self, step: int, time: float, values: Mapping[str, float]) -> None:
        if self.error is not None:
            raise self.error
        self.told.append((step, dict(values)))

    def close(self, ending: str = "finished") -> None:
        self.ended = ending


def test_a_class_of_ones_own_as_object_and_as_class(tmp_path: Path) -> None:
    one = Mine(RunFacts(tmp_path))
    for tracker in (one, Mine, [Mine], ["csv", one, Mine]):
        made = RunTracker(tmp_path / "run", tracker=tracker, settings={"a": 1})
        made.scalars(1, {"train/loss": 0.5})
        made.figure(1, "validation/task", _figure())
        made.close()
    assert one.told == [(1, {"train/loss": 0.5})] * 2 and one.ended == "finished"
    with pytest.raises(SettingError, match="one of tensorboard, csv, wandb, mlflow, a list"):
        check_backends([Mine], own=False)


def test_what_fails_costs_its_records_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = Mine(RunFacts(tmp_path))
    tracker = RunTracker(tmp_path, tracker=[one, "csv"])
    tracker.scalars(1, {"train/loss": 1.0})
    one.error = ConnectionError("the line is dead")
    with caplog.at_level(logging.WARNING):
        _log(tracker, range(2, 4))
    tracker.close()
    (said,) = (record.getMessage() for record in caplog.records)
    assert "tracker=own, the line is dead; the training goes on" in said
    assert [row[0] for row in _rows(tmp_path)[1:] if row[2] == "train/loss"] == ["1", "2", "3"]


def test_a_mistake_is_no_failure(tmp_path: Path) -> None:
    one = Mine(RunFacts(tmp_path))
    tracker = RunTracker(tmp_path, tracker=one)
    one.error = TypeError("a mistake")
    with pytest.raises(TypeError, match="a mistake"):
        tracker.scalars(1, {"train/loss": 1.0})
    tracker.close()
