"""What several processes make at once: made once, and never believed where a maker was killed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metalearn.data.made_once import made_once
from metalearn.data.packed import Pack, kept_pack, read_pack, write_pack
from metalearn.files import alone, replace_file

WAIT = 60.0
SUM = int((np.arange(2**16) % 256).sum())
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload([__name__])  # imports once, and has forks without threads


def process(run: Callable[..., None], *given: Any) -> Any:
    started = server.Process(target=run, args=given, daemon=True)
    started.start()
    return started


def wait_for(path: Path) -> None:
    end = time.monotonic() + WAIT
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.01)


def maker(folder: Path) -> None:
    """Makes a pack, once it may, and notes what it has of it in a file of its own."""

    def make() -> dict[str, np.ndarray]:
        with (folder / "made").open("a") as file:
            file.write("x")
        (folder / "begun").touch()
        wait_for(folder / "go")
        return {"images": np.arange(2**16, dtype=np.uint8).reshape(256, 256)}

    pack = kept_pack(folder / "things.npz", "a source", make)
    (folder / f"sum-{os.getpid()}").write_text(str(pack.arrays["images"].astype(int).sum()))


def test_one_of_several_processes_makes_what_all_read(tmp_path: Path) -> None:
    makers = [process(maker, tmp_path) for _ in range(3)]
    wait_for(tmp_path / "begun")
    time.sleep(0.3)  # for the others to wait
    (tmp_path / "go").touch()
    for each in makers:
        each.join(WAIT)
    assert [each.exitcode for each in makers] == [0] * 3
    assert (tmp_path / "made").read_text() == "x"
    sums = [path.read_text() for path in tmp_path.glob("sum-*")]
    assert sums == [str(SUM)] * 3
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith("sum-")}
    assert left == {"things.npz", "made", "begun", "go"}, "no lock is left"


def test_who_waits_goes_on_where_the_maker_is_killed(tmp_path: Path) -> None:
    dead = process(maker, tmp_path)
    wait_for(tmp_path / "begun")
    waiting = process(maker, tmp_path)
    time.sleep(0.3)
    os.kill(dead.pid, signal.SIGKILL)
    (tmp_path / "go").touch()
    waiting.join(WAIT)
    assert waiting.exitcode == 0 and (tmp_path / "made").read_text() == "xx"
    assert (tmp_path / f"sum-{waiting.pid}").read_text() == str(SUM)


def test_who_waits_says_for_whom(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="metalearn")
    path, inside, order = tmp_path / "things", threading.Event(), list[str]()

    def second() -> None:
        with alone(path):
            order.append("second")

    with alone(path):
        thread = threading.Thread(target=second)
        thread.start()
        end = time.monotonic() + WAIT
        while "is waited for" not in caplog.text and time.monotonic() < end:
            inside.wait(0.01)
        order.append("first")
    thread.join(WAIT)
    assert order == ["first", "second"]
    assert f"{path} is being made by process {os.getpid()} of " in caplog.text
    assert not list(tmp_path.iterdir()), "no lock is left"


def test_where_no_lock_can_be_written_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert made_once(tmp_path / "file" / "things", lambda: None, lambda: 3) == 3


def test_what_was_made_before_the_lock_is_read(tmp_path: Path) -> None:
    path = tmp_path / "things"
    found: list[int | None] = [None, 4]

    def read() -> int | None:
        value = found.pop(0)
        if value is None:
            path.touch()  # another process, between the look and the lock
        return value

    assert made_once(path, read, lambda: 5) == 4


def half_writer(folder: Path) -> None:
    """Writes a part of a pack, and never the rest."""

    def stopping(file: Any, **arrays: Any) -> None:
        file.write(b"PK" + bytes(1000))
        file.flush()
        (folder.parent / "half").touch()
        time.sleep(600)

    np.savez = stopping
    write_pack(folder / "things.npz", Pack({"a": np.zeros(3, np.uint8)}, "b"))


def test_a_writer_that_is_killed_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "packs"
    writer = process(half_writer, folder)
    wait_for(tmp_path / "half")
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(WAIT)
    assert len(list(folder.iterdir())) == 1 and read_pack(folder / "things.npz") is None
    arrays = {"a": np.ones(5, np.uint8)}
    assert kept_pack(folder / "things.npz", "b", lambda: arrays).arrays["a"].tolist() == [1] * 5
    assert [p.name for p in folder.iterdir()] == ["things.npz"], "the half file is gone"


def reader(path: Path, count: int, there: Any, told: Any) -> None:
    """Reads a pack, waits for the others, and tells how much of its memory is shared."""
    pack = read_pack(path)
    assert pack is not None and int(pack.arrays["images"].max()) == 255
    there.wait(WAIT)
    maps = Path("/proc/self/smaps").read_text()
    start = maps.index(path.name)
    found = re.findall(r"^(\w+): +(\d+) kB", maps[start : maps.index("VmFlags", start)], re.M)
    told.put({name: int(kilobytes) for name, kilobytes in found})
    there.wait(WAIT)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/smaps")
def test_processes_share_one_copy_of_a_pack(tmp_path: Path) -> None:
    path, count, size = tmp_path / "things.npz", 3, 2**23
    write_pack(path, Pack({"images": np.arange(size, dtype=np.uint8)}, "a source"))
    there, told = server.Barrier(count), server.Queue()
    readers = [process(reader, path, count, there, told) for _ in range(count)]
    for _ in range(count):
        found = told.get(timeout=WAIT)
        assert found["Rss"] * 1024 >= size and found["Private_Dirty"] == 0
        assert found["Pss"] * count <= found["Rss"] * 1.1, "each has its part of one copy"
    for each in readers:
        each.join(WAIT)
    assert [each.exitcode for each in readers] == [0] * count


LOCKLESS = [errno.ENOLCK, errno.EIO, errno.EACCES, errno.EINVAL, errno.ESTALE]


@pytest.mark.skipif(sys.platform == "win32", reason="fcntl")
@pytest.mark.parametrize("refusal", LOCKLESS)
def test_who_cannot_lock_is_let_in(
    tmp_path: Path, refusal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refused(*given: object) -> None:
        raise OSError(refusal, "no locks")

    monkeypatch.setattr(fcntl, "flock", refused)
    path = tmp_path / "things"

    def make() -> int:
        replace_file(path, lambda file: file.write(b"3"))
        return 3

    assert made_once(path, lambda: None, make) == 3
    assert path.read_bytes() == b"3"
    assert list(tmp_path.iterdir()) == [path], "no lock is left, and nothing half made"


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_a_full_disk_that_takes_no_name_still_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Path.open

    class Full:
        """A lock file on a full disk."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda path, *a, **b: Full(before(path, *a, **b)))
    path, inside = tmp_path / "things", threading.Event()
    with alone(path):
        thread = threading.Thread(target=lambda: alone(path).__enter__() or inside.set())
        thread.start()
        assert not inside.wait(0.3)
    assert inside.wait(WAIT)
    thread.join(WAIT)


@pytest.mark.skipif(sys.platform == "win32", reason="fcntl")
@pytest.mark.parametrize("after", ["removed", "made anew"])
def test_who_locked_a_file_that_was_taken_away_locks_the_one_that_is_there(
    tmp_path: Path, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    path, place = tmp_path / "things", tmp_path / ".things.lock"
    before, taken = fcntl.flock, list[int]()

    def late(file: Any, how: int) -> None:
        """As where NFS keeps a removed file under another name: it still has one."""
        if not taken:
            os.link(place, tmp_path / ".nfs0001")
            place.unlink()
            if after == "made anew":
                place.touch()
        taken.append(os.fstat(file.fileno()).st_ino)
        before(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with alone(path):
        assert len(taken) == 2 and taken[0] != taken[1] == place.stat().st_ino
        with place.open("rb") as other, pytest.raises(BlockingIOError):
            before(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not place.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="fcntl")
def test_the_lock_of_another_is_not_taken_away(tmp_path: Path) -> None:
    place = tmp_path / ".things.lock"
    with alone(tmp_path / "things"):
        place.unlink()
        place.write_text("of another")
    assert place.read_text() == "of another"
