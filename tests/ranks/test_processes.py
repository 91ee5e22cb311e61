"""Ranks that are processes: meetings over the loopback, and a training that is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as processes

from metalearn.errors import RankError
from metalearn.ranks import joined, watch
from metalearn.ranks.launch import Launch

WAIT = 150.0
SETTINGS = [
    "task=sinusoid", "model=mlp", "trainer.meta_batch=5", "trainer.validation_tasks=7",
    "test_tasks=9", "trainer.eval_every=4", "trainer.log_every=2", "trainer.checkpoint_every=2",
    "device=cpu", "maml.inner_lr=0.01",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _meetings(rank: int, count: int, port: int, folder: str) -> None:
    """What every rank finds, in a file of its own."""
    with joined(60.0, Launch(rank, count, rank, "127.0.0.1", port)) as ranks:
        wide = {"a": torch.full((3, 2), rank + 1.0), "b": torch.full((2,), rank + 0.5).double()}
        sums = ranks.sums(wide)
        rows = torch.arange(rank + 1).repeat_interleave(2).view(-1, 2)
        every = ranks.joined(rows, [r + 1 for r in range(count)])
        flags = ranks.joined(torch.tensor([rank == 1]), [1] * count)
        notes = [ranks.noted(15 if rank == 1 and call == 0 else 0) for call in range(3)]
        found = {
            "sums": {name: value.tolist() for name, value in sums.items()},
            "types": [str(value.dtype) for value in sums.values()],
            "rows": every.tolist(),
            "flags": flags.tolist(),
            "agreed": ranks.agreed({"rank": rank}),
            "each": ranks.of_each([rank, "ß"]),
            "notes": notes,
        }
        Path(folder, f"{rank}.json").write_text(json.dumps(found))


def test_meetings_over_the_loopback(tmp_path: Path) -> None:
    count = 3
    processes.spawn(_meetings, args=(count, free_port(), str(tmp_path)), nprocs=count)  # type: ignore[no-untyped-call]
    for rank in range(count):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["sums"] == {"a": [[6.0] * 2] * 3, "b": [4.5] * 2}
        assert found["types"] == ["torch.float32", "torch.float64"]
        assert found["rows"] == [[0, 0], [0, 0], [1, 1], [0, 0], [1, 1], [2, 2]]
        assert found["flags"] == [False, True, False]
        assert found["agreed"] == {"rank": 0}
        assert found["each"] == [[0, "ß"], [1, "ß"], [2, "ß"]]
        assert found["notes"] == [0, 15, 0]


def _unequal_work(rank: int, count: int, port: int, folder: str) -> None:
    """One takes longer than ranks wait for each other; then one of them is lost."""
    watch._LONG_PATIENCE = 3.0
    with joined(4.0, Launch(rank, count, rank, "127.0.0.1", port)) as ranks:
        if rank == 2:
            time.sleep(7)
        ranks.gather()
        found = {"sum": float(ranks.sums({"a": torch.tensor(1.0)})["a"])}
        Path(folder, f"{rank}.json").write_text(json.dumps(found))
        if rank == 2:
            os._exit(0)
        before = time.monotonic()
        try:
            ranks.gather()
        except RankError as error:
            found |= {"lost": str(error), "seconds": time.monotonic() - before}
        Path(folder, f"{rank}.json").write_text(json.dumps(found))
        os._exit(0)


def test_who_works_longer_is_waited_for_and_who_is_lost_is_not(tmp_path: Path) -> None:
    count = 3
    processes.spawn(_unequal_work, args=(count, free_port(), str(tmp_path)), nprocs=count)  # type: ignore[no-untyped-call]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(count)]
    assert [one["sum"] for one in found] == [3.0] * 3
    first = found[0]
    assert first["lost"].startswith("rank 2 is gone: it was killed") and first["seconds"] < 20


# --- trainings -----------------------------------------------------------------------------------


class Started:
    """R processes of a command, as torchrun would start them, and what they say."""

    def __init__(
        self,
        folder: Path,
        settings: Sequence[Sequence[str]],
        *,
        command: str = "train",
        **environment: str,
    ) -> None:
        port = free_port()
        self.ranks = []
        for rank, own in enumerate(settings):
            known = {
                **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1",
                "WORLD_SIZE": str(len(settings)), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port), **environment,
            }  # fmt: skip
            self.ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", "metalearn", command, *own],
                    cwd=folder, env=known, text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            )  # fmt: skip

    def ends(self) -> list[tuple[int, str, str]]:
        """Exit code, output and errors of each."""
        found = []
        for process in self.ranks:
            out, err = process.communicate(timeout=WAIT)
            found.append((process.returncode, out, err))
        return found

    def kill(self) -> None:
        for process in self.ranks:
            if process.poll() is None:
                process.kill()
                process.communicate()


@pytest.fixture(name="started")
def _started() -> Iterator[list[Started]]:
    """What is to be gone when a test is over."""
    every: list[Started] = []
    yield every
    for one in every:
        one.kill()


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def series(folder: Path, name: str) -> list[float]:
    return [row[name] for row in records(folder) if name in row]


def wait_for_step(folder: Path, step: int) -> None:
    """Until a training has recorded a step."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        path = folder / "metrics.jsonl"
        if path.is_file() and any(row["step"] >= step for row in records(folder)):
            return
        time.sleep(0.1)
    raise AssertionError(f"no step {step} in {folder}")


def test_torchrun_leaves_the_folder_of_one_process(tmp_path: Path) -> None:
    """By its own launcher, as a person would type it."""
    plain = [sys.executable, "-m", "metalearn", "train"]
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    known = {**os.environ, "OMP_NUM_THREADS": "1"}
    how: Any = {
        "cwd": tmp_path,
        "text": True,
        "capture_output": True,
        "timeout": WAIT,
        "env": known,
    }
    steps = [*SETTINGS, "trainer.steps=8"]
    one = subprocess.run([*plain, *steps, "hydra.run.dir=one"], **how)
    assert one.returncode == 0, one.stderr
    two = subprocess.run([*ranks, *plain[1:], *steps, "hydra.run.dir=two"], **how)
    assert two.returncode == 0, two.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    names = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*")}
    known_names = {p for p in names if "tfevents" not in p.name}
    assert known_names <= {p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*.*")}
    for name in ("train/loss", "validation/loss_after"):
        found = series(tmp_path / "two", name)
        assert found == pytest.approx(series(tmp_path / "one", name), rel=1e-4)
    assert two.stdout.count("run folder:") == one.stdout.count("run folder:") == 1
    results = [json.loads((tmp_path / n / "results.json").read_text()) for n in ("one", "two")]
    headlines = [result["headline"] for result in results]
    assert headlines[1] == pytest.approx(headlines[0], rel=1e-3)


def test_a_killed_rank_is_named_and_the_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, started: list[Started]
) -> None:
    long = [*SETTINGS, "trainer.steps=100000", "trainer.compile=never", "hydra.run.dir=run"]
    run = Started(tmp_path, [long] * 2)
    started.append(run)
    wait_for_step(tmp_path / "run", 6)
    run.ranks[1].kill()
    before = time.monotonic()
    code, _, err = run.ends()[0]
    assert code == 1 and time.monotonic() - before < 30
    assert "rank 1 is gone: it was killed" in err
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    step = int(torch.load(last, weights_only=True)["step"])
    more = Started(tmp_path, [["resume=run", f"trainer.steps={step + 4}"]] * 2)
    started.append(more)
    assert [code for code, *_ in more.ends()] == [0, 0]


def test_a_signal_to_one_rank_stops_all_at_the_same_step(
    tmp_path: Path, started: list[Started]
) -> None:
    long = [*SETTINGS, "trainer.steps=100000", "trainer.compile=never", "hydra.run.dir=run"]
    run = Started(tmp_path, [long] * 2)
    started.append(run)
    wait_for_step(tmp_path / "run", 4)
    run.ranks[1].send_signal(signal.SIGTERM)
    (code, out, err), (other, *_) = run.ends()
    assert code == other == 128 + signal.SIGTERM, err
    step = re.search(r"stopped at step (\d+); go on with resume=", out)
    assert step is not None
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert saved["step"] == int(step[1])


def test_a_rank_with_other_settings_is_refused(tmp_path: Path, started: list[Started]) -> None:
    base = [*SETTINGS, "trainer.steps=4", "hydra.run.dir=run"]
    run = Started(tmp_path, [base, [*base, "maml.inner_lr=0.02"]])
    started.append(run)
    (first, _, err), (second, *rest) = run.ends()
    assert first == second == 2
    assert "command of rank 1=" in err and "as rank 0 has it" in err
    assert rest == ["", ""]  # what all have to say is said once
    assert not (tmp_path / "run").exists()


def test_other_commands_and_sweeps_are_refused(tmp_path: Path, started: list[Started]) -> None:
    known = {**os.environ, "WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": str(free_port())}
    for words, sentence in (
        (["export", "run=x"], "diagnose, attribute are what 2 ranks can share; others run without"),
        (["train", "-m", "seed=0,1"], "torchrun='-m': one run is what ranks can share"),
    ):
        found = subprocess.run(
            [sys.executable, "-m", "metalearn", *words],
            cwd=tmp_path, env=known, text=True, capture_output=True, timeout=WAIT,
        )  # fmt: skip
        assert found.returncode == 2 and sentence in found.stderr
