"""Runs that are killed, starved or finished, through the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metalearn.checkpoint import load_checkpoint, save_checkpoint
from metalearn.cli import load_learner, run_folders
from metalearn.cli.commands import train as train_command
from metalearn.cli.run_folders import claimed
from metalearn.errors import SettingError, StorageError
from metalearn.tracking import RunTracker
from metalearn.trainers import MetaTrainer
from metalearn.trainers.loop.loop import Loop
from metalearn.trainers.meta.evaluator import MetaEvaluator
from tests.support.builders import assert_same, without_times
from tests.support.commands import ROOT, TINY, Outcome, call

Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MetaEvaluator, "_draw", lambda self, *given: None)
    monkeypatch.setattr("metalearn.cli.commands.train.provenance", dict)  # asks git, which is slow

    def command(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    return command


def _files(folder: Path) -> dict[str, tuple[bytes, int]]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in found}


def _ends(folder: Path) -> dict[str, Any]:
    state = load_checkpoint(folder / "checkpoints" / "last.pt")
    results = json.loads((folder / "results.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    plain = [
        {k: v for k, v in row.items() if k != "time" and not k.startswith("speed/")}
        for row in lines
    ]
    return {**without_times(state), **without_times(results), "metrics": plain}


Trained = Callable[[Path], None]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("known") / "run"


@pytest.fixture
def trained(run: Run, known: Path) -> Trained:
    """Puts a finished run of TINY somewhere: trained by the first test that asks, then copied."""

    def put(folder: Path) -> None:
        if not known.exists():
            assert run("train", *TINY, f"hydra.run.dir={known}").code == 0
        shutil.copytree(known, folder)

    return put


def _started(trained: Trained, folder: Path) -> dict[str, Any]:
    """A run that was stopped before its first checkpoint; how it would have ended."""
    trained(folder)
    wanted = _ends(folder)
    shutil.rmtree(folder / "checkpoints")
    (folder / "results.json").unlink()
    return wanted


# --- killed before the first checkpoint --------------------------------------------------------


@pytest.mark.parametrize(
    "left",
    [
        "config.yaml",
        "config.yaml provenance.json",
        "config.yaml provenance.json metrics.jsonl",
        "config.yaml provenance.json metrics.jsonl tensorboard",
        "config.yaml provenance.json metrics.jsonl tensorboard .lock train.log",
        "config.yaml provenance.json metrics.jsonl tensorboard checkpoints",
        "config.yaml .metrics.jsonl.0123456789abcdef .results.json.0123456789abcdef",
    ],
)
def test_a_run_without_a_checkpoint_starts_from_step_0(
    run: Run, trained: Trained, tmp_path: Path, left: str
) -> None:
    folder = tmp_path / "killed"
    wanted = _started(trained, folder)
    (folder / "checkpoints").mkdir()
    for path in list(folder.iterdir()):
        if path.name not in left.split():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in left.split():
        if not (folder / name).exists():
            (folder / name).write_bytes(b"")
    outcome = run("train", *TINY, "hydra.run.dir=killed")
    assert outcome.code == 2
    assert f"this folder holds a run already; resume={folder} goes on with it" in outcome.err
    outcome = run("train", "resume=killed")
    assert outcome.code == 0, outcome.err
    assert (
        "stopped before its first checkpoint, so it starts from step 0"
        in (folder / "train.log").read_text()
    )
    assert_same(_ends(folder), wanted)
    assert not list(folder.rglob(".*"))
    assert (folder / "provenance.json").is_file()


@pytest.mark.parametrize(
    "left", ["", "train.log", "train.log .lock", "train.log .lock .config.yaml.0123456789abcdef"]
)
def test_a_folder_in_which_no_run_began_takes_a_new_one(
    run: Run, tmp_path: Path, left: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name in left.split():
        (folder / name).write_bytes(b"half")
    outcome = run("train", "resume=out")
    assert outcome.code == 2
    assert "a run that ended before it had one is started anew" in outcome.err
    assert run("train", *TINY, "hydra.run.dir=out").code == 0
    assert not list(folder.rglob(".*"))


def test_only_our_leftovers_are_swept(run: Run, trained: Trained, tmp_path: Path) -> None:
    trained(tmp_path / "out")
    mine = tmp_path / "out" / ".notes.0123456789abcdef"
    mine.write_text("mine")
    partial = tmp_path / "out" / "checkpoints" / ".last.pt.0123456789abcdef"
    partial.write_text("half")
    assert run("train", "resume=out").code == 0
    assert mine.read_text() == "mine"
    assert not partial.exists()


def test_a_later_best_is_not_trained_over(run: Run, trained: Trained, tmp_path: Path) -> None:
    trained(tmp_path / "out")
    folder = tmp_path / "out" / "checkpoints"
    best = load_checkpoint(folder / "best.pt")
    save_checkpoint(folder / "best.pt", best | {"step": 2})
    (folder / "last.pt").unlink()
    outcome = run("train", "resume=out")
    assert outcome.code == 2
    assert "last.pt: it is missing; a copy of best.pt in its place goes on" in outcome.err


def test_checkpoints_of_something_else_are_left_alone(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(b"mine")
    outcome = run("train", *TINY, "hydra.run.dir=out")
    assert outcome.code == 2
    assert "holds checkpoints of another training" in outcome.err
    assert (folder / "last.pt").read_bytes() == b"mine"


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_bad_best_is_said_at_the_start(
    run: Run, trained: Trained, tmp_path: Path, damage: str
) -> None:
    trained(tmp_path / "out")
    best = tmp_path / "out" / "checkpoints" / "best.pt"
    if damage == "missing":
        best.unlink()
    else:
        best.write_bytes(best.read_bytes()[:-100])
    before = _files(tmp_path / "out")
    outcome = run("train", "resume=out", "trainer.steps=8")
    assert outcome.code == 2
    assert "best.pt" in outcome.err and outcome.err.count("\n") == 1
    assert _files(tmp_path / "out") == before


# --- finished ----------------------------------------------------------------------------------


def test_resuming_a_finished_run_changes_nothing(run: Run, tmp_path: Path) -> None:
    first = run("train", *TINY, "hydra.run.dir=out")
    before = _files(tmp_path / "out")
    outcome = run("train", "resume=out")
    assert outcome.code == 0, outcome.err
    assert _files(tmp_path / "out") == before
    assert "finished at step 4; its files stay as they are" in outcome.out
    table = first.out[first.out.index("transductive") : first.out.index("dashboard")]
    assert table in outcome.out
    assert run("train", "resume=out", "trainer.steps=6").code == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["steps"] == 6


def test_a_run_that_was_killed_in_its_test_is_tested(
    run: Run, trained: Trained, tmp_path: Path
) -> None:
    trained(tmp_path / "out")
    wanted = _ends(tmp_path / "out")
    (tmp_path / "out" / "results.json").unlink()
    last = _files(tmp_path / "out" / "checkpoints")
    assert run("train", "resume=out").code == 0
    assert_same(_ends(tmp_path / "out"), wanted)
    assert _files(tmp_path / "out" / "checkpoints") == last


def test_results_of_fewer_steps_are_not_those_of_the_end(
    run: Run, trained: Trained, tmp_path: Path
) -> None:
    trained(tmp_path / "out")
    results = tmp_path / "out" / "results.json"
    before = results.read_bytes()
    assert run("train", "resume=out", "trainer.steps=6").code == 0
    wanted = _ends(tmp_path / "out")
    results.write_bytes(before)  # as if the second test had been killed
    assert run("train", "resume=out").code == 0
    assert_same(_ends(tmp_path / "out"), wanted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_in_the_test_leaves_a_run_that_can_be_tested(
    run: Run, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = MetaTrainer.test

    def signalled(self: Any, *args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), number)
        return test(self, *args, **kwargs)

    monkeypatch.setattr(MetaTrainer, "test", signalled)
    outcome = run("train", *TINY, "hydra.run.dir=out")
    assert outcome.code == 128 + number
    assert f"stopped before it was tested; go on with resume={tmp_path / 'out'}" in outcome.out
    monkeypatch.setattr(MetaTrainer, "test", test)
    assert run("train", "resume=out").code == 0
    assert (tmp_path / "out" / "results.json").is_file()


# --- one process at a time ---------------------------------------------------------------------


def test_one_of_many_has_the_folder(tmp_path: Path) -> None:
    """Claims, and locks that are taken away at their end, in turns: never two at once."""
    inside = tmp_path / "inside"
    children = []
    for _ in range(6):
        child = os.fork()
        if not child:  # no return into pytest
            code = 0
            try:
                for _ in range(300):
                    try:
                        with claimed(tmp_path / "run"):
                            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                            inside.unlink()
                    except SettingError:
                        continue
            except BaseException:
                code = 1
            os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 6
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize(("script", "setting"), [("train", "resume"), ("diagnose", "run")])
def test_a_second_process_is_refused_before_it_computes(
    run: Run,
    trained: Trained,
    tmp_path: Path,
    script: str,
    setting: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained(tmp_path / "out")
    before = _files(tmp_path / "out")
    place = {"train": "commands.train.build", "diagnose": "commands.diagnose.trainer_of"}[script]
    monkeypatch.setattr(f"metalearn.cli.{place}", lambda *given, **settings: 1 / 0)
    with claimed(tmp_path / "out"):
        outcome = run(script, f"{setting}=out")
        assert outcome.code == 2
        assert outcome.err.startswith(f"error: {setting}='")
        assert "out': another process is running in this folder" in outcome.err
    assert _files(tmp_path / "out") == before


# --- disks -------------------------------------------------------------------------------------


@pytest.fixture
def read_only(tmp_path: Path) -> Any:
    """Makes a folder read-only: by permissions, which root does not heed, or by a mount."""
    mounted: list[Path] = []

    def make(folder: Path) -> None:
        if os.getuid():
            folder.chmod(0o555)
            (folder / "checkpoints").chmod(0o555)
            return
        for options in (["--bind"], ["-o", "remount,ro,bind"]):
            done = subprocess.run(
                ["mount", *options, str(folder), str(folder)], capture_output=True
            )
            if done.returncode:
                pytest.skip("nothing can be made read-only here")
            if options == ["--bind"]:
                mounted.append(folder)

    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_run_is_read(
    run: Run, trained: Trained, tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    trained(tmp_path / "out")
    folder = tmp_path / "out"
    read_only(folder)
    load_learner(folder)
    outcome = run("evaluate", "run=out", "tasks=4")
    assert outcome.code == 1
    assert "after 3 inner steps" in outcome.out, "what is computed is shown"
    assert "out: evaluation-test.json cannot be written: " in outcome.err
    outcome = run("diagnose", "run=out")
    assert outcome.code == 1
    assert "out: it cannot be written to: " in outcome.err
    for arguments in (["resume=out"], [*TINY, "hydra.run.dir=out/in"]):
        outcome = run("train", *arguments)
        assert outcome.code == 1, outcome.err
        assert "out" in outcome.err and outcome.err.count("\n") == 1
    with pytest.raises(StorageError, match="out: it cannot be written to"), claimed(folder):
        pass


@pytest.mark.parametrize("moment", ["training", "test"])
def test_a_folder_that_was_taken_away_is_told(
    run: Run, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place: Any = {"training": Loop, "test": MetaTrainer}[moment]
    name = {"training": "set_rates", "test": "test"}[moment]
    original = getattr(place, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.step == 2 or moment == "test":
            shutil.rmtree(tmp_path / "out")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(place, name, method)
    outcome = run("train", *TINY, "hydra.run.dir=out")
    assert outcome.code == 1
    assert "out: the run's folder is gone" in outcome.err and outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


FULL = """
import resource, sys
sys.argv = ["scripts/train.py", *sys.argv[2:]]
limit = int({limit!r})
import metalearn.cli.commands.train as commands
begin = commands._begin
def limited(*args, **kwargs):
    begin(*args, **kwargs)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
commands._begin = limited
import runpy
runpy.run_path("scripts/train.py", run_name="__main__")
"""


def _process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def test_a_full_disk_is_one_sentence_and_no_end(run: Run, trained: Trained, tmp_path: Path) -> None:
    """Files may not grow beyond a limit, as on a disk that is full."""
    folder = tmp_path / "full"
    done = _process("-c", FULL.format(limit=1500), "-", *TINY, f"hydra.run.dir={folder}")
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    sentence = f"{folder}: checkpoints/last.pt cannot be written: File too large; with that mended"
    assert sentence in done.stderr
    assert run("train", f"resume={folder}").code == 0
    trained(tmp_path / "whole")
    assert_same(_ends(folder), _ends(tmp_path / "whole"))


def test_a_disk_that_is_full_for_tensorboard_alone_ends_nothing(tmp_path: Path) -> None:
    """Its file is the only one that grows beyond this limit."""
    folder = tmp_path / "full"
    done = _process("-c", FULL.format(limit=12_000), "-", *TINY, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("no further records for TensorBoard, File too large") == 1
    (events,) = (folder / "tensorboard").iterdir()
    loaded = EventAccumulator(str(events)).Reload()
    assert loaded.Tags()["tensors"] == ["custom_scalars__config__"], "what was written is whole"


def test_tensorboard_alone_does_not_end_a_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = RunTracker.__init__

    def blocked(self: Any, folder: Path, **settings: Any) -> None:
        (folder / "tensorboard").write_text("in the way")
        begin(self, folder, **settings)

    monkeypatch.setattr(RunTracker, "__init__", blocked)
    outcome = run("train", *TINY, "trainer.members=2", "hydra.run.dir=out")
    assert outcome.code == 0, outcome.err
    log = (tmp_path / "out" / "train.log").read_text()
    assert "no further records for TensorBoard" in log


# --- streams -----------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", ["1>&-", "2>&-", "1>/dev/full 2>/dev/full", "| head -1"])
def test_nobody_has_to_listen(tmp_path: Path, streams: str) -> None:
    folder = tmp_path / "out"
    settings = [s for s in TINY if "progress" not in s]
    command = (
        " ".join(
            [
                "python",
                "scripts/train.py",
                *settings,
                f"hydra.run.dir={folder}",
                "trainer.progress=true",
            ]
        )
        .replace("python", sys.executable, 1)
        .replace("[8]", "'[8]'")
    )
    if streams == "| head -1":
        command = f"( {command} 2>&1; echo $? > {tmp_path / 'code'} ) | head -1"
    else:
        command = f"{command} {streams}; echo $? > {tmp_path / 'code'}"
    subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=300,
        check=True,
    )
    assert (tmp_path / "code").read_text().strip() == "0"
    assert json.loads((folder / "results.json").read_text())["steps"] == 4


# --- names --------------------------------------------------------------------------------------


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another process makes the folder after its name was chosen."""
    monkeypatch.setattr(run_folders.time, "strftime", lambda form: "now")
    first = tmp_path / "outputs" / "sinusoid-now"
    assert run("train", *TINY).code == 0
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    assert run("train", *TINY, "seed=1").code == 0
    assert {path.name for path in first.parent.iterdir()} == {"sinusoid-now", "sinusoid-now-2"}
    assert all(path.read_bytes() == data for path, data in before.items())
    check = train_command.check

    def meanwhile(*given: Any) -> None:
        check(*given)
        (first.parent / "sinusoid-now-3").mkdir()

    monkeypatch.setattr(train_command, "check", meanwhile)
    assert run("train", *TINY, "seed=2").code == 0
    assert not any((first.parent / "sinusoid-now-3").iterdir())
    assert (first.parent / "sinusoid-now-4" / "results.json").is_file()


def test_a_run_that_never_began_leaves_no_folder_named_by_the_time(
    run: Run, tmp_path: Path
) -> None:
    assert run("train", "task=folder", "task.root=nowhere").code == 2
    assert not any(tmp_path.iterdir())


# --- changes ------------------------------------------------------------------------------------


def _kept(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(ROOT / "tests" / "saved_runs" / "v1" / name, folder))


@pytest.mark.parametrize("rates", ["[1e-3,1e-2,1e-3]", "1e-3", "null", "{low:1e-3,high:1e-2}"])
def test_rates_of_members_change_in_kind_when_a_run_goes_on(
    run: Run, tmp_path: Path, rates: str
) -> None:
    """The run had a range."""
    folder = _kept("ensemble-interrupted", tmp_path / "out")
    given = ["trainer=ensemble", f"trainer.lr={rates}", "trainer.steps=22"]
    outcome = run("train", f"resume={folder}", *given)
    assert outcome.code == 0, outcome.err
    text = (folder / "config.yaml").read_text()
    assert ("low:" in text) is ("low:" in rates)


@pytest.mark.parametrize("kind", ["pipe", "device", "deep", "torn"])
def test_results_that_cannot_be_read_are_made_anew(run: Run, tmp_path: Path, kind: str) -> None:
    folder = _kept("meta_sinusoid-finished", tmp_path / "out")
    results = folder / "results.json"
    results.unlink()
    if kind == "pipe":
        os.mkfifo(results)
    elif kind == "device":
        results.symlink_to("/dev/zero")
    else:
        results.write_text({"deep": "[" * 100_000, "torn": '{"steps": 40'}[kind])
    outcome = run("train", f"resume={folder}")
    assert outcome.code == 0, outcome.err
    assert not results.is_symlink() and json.loads(results.read_text())["steps"] == 40
