"""Files are whole or not there."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from io import FileIO
from pathlib import Path
from typing import IO, Any

import pytest

from metalearn.files import append_whole, lock, read_regular, remove_partials, replace_file


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_writes_into_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    replace_file(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"a much longer old content")
    replace_file(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, ValueError])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def fail(file: IO[bytes]) -> None:
        file.write(b"half of the n")
        file.flush()
        raise error("disk full")

    with pytest.raises(error, match="disk full"):
        replace_file(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_a_first_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(file: IO[bytes]) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(tmp_path / "file.bin", fail)
    assert list(tmp_path.iterdir()) == []


def test_the_old_file_stays_readable_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    seen: list[bytes] = []

    def write(file: IO[bytes]) -> None:
        file.write(b"new")
        file.flush()
        seen.append(path.read_bytes())

    replace_file(path, write)
    assert seen == [b"old"]
    assert path.read_bytes() == b"new"


def test_who_reads_the_old_file_meanwhile_reads_it_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old content")
    with path.open("rb", buffering=0) as reader:
        assert reader.read(3) == b"old"
        replace_file(path, lambda file: file.write(b"new"))
        assert reader.read() == b" content"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_who_may_read_is_what_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    path, before = tmp_path / "file.bin", os.umask(umask)
    try:
        replace_file(path, lambda file: file.write(b"1"))
    finally:
        os.umask(before)
    assert _mode(path) == mode


def test_many_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    contents = [bytes([65 + i]) * 5000 for i in range(8)]

    def write(content: bytes) -> None:
        for _ in range(5):
            replace_file(
                path, lambda file: [file.write(content[:2500]), file.write(content[2500:])]
            )

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_reads_a_file_of_as_many_bytes_as_allowed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_regular(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes; at most 4 are read"):
        read_regular(tmp_path / "file", 4)


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device"])
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_file_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, linked: bool
) -> None:
    path = tmp_path / "it"
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as listening:
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            listening.bind("it")
        else:
            path = Path("/dev/zero")
        if linked:
            (tmp_path / "link").symlink_to(path)
            path = tmp_path / "link"
        with pytest.raises(OSError, match=f"a {kind}, not a file"):
            read_regular(path, 10)


def test_files_that_say_they_are_empty_are_read_no_further_than_allowed() -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("no such file system here")
    assert len(read_regular(Path("/proc/self/stat"), 10_000)) > 10
    with pytest.raises(OSError, match="more than 100 bytes; at most 100 are read"):
        read_regular(Path("/proc/self/maps"), 100)


PARTIAL = ".file.bin.0123456789abcdef"


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    (tmp_path / PARTIAL).write_bytes(b"half")
    replace_file(tmp_path / "file.bin", lambda file: file.write(b"new"))
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize(
    "name",
    [
        "file.bin",
        ".file.bin",
        ".file.bin.0123456789abcde",
        ".file.bin.0123456789abcdeg",
        ".other.bin.0123456789abcdef",
        "file.bin.0123456789abcdef",
        ".file.bin.0123456789abcdef~",
    ],
)
def test_only_our_own_leftovers_go(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    (tmp_path / PARTIAL).write_bytes(b"half")
    remove_partials(tmp_path, r"file\.bin")
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_links_and_folders_of_such_a_name_stay(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"mine")
    if kind == "link":
        (tmp_path / PARTIAL).symlink_to(target)
    else:
        (tmp_path / PARTIAL).mkdir()
    remove_partials(tmp_path, ".*")
    assert (tmp_path / PARTIAL).exists() and target.exists()


def test_what_is_being_written_stays(tmp_path: Path) -> None:
    def write(file: IO[bytes]) -> None:
        remove_partials(tmp_path, ".*")
        file.write(b"new")

    replace_file(tmp_path / "file.bin", write)
    assert (tmp_path / "file.bin").read_bytes() == b"new"


def test_a_missing_folder_has_no_leftovers(tmp_path: Path) -> None:
    remove_partials(tmp_path / "nowhere", ".*")
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_is_made_only_where_it_should_be(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "file.bin"
    with pytest.raises(FileNotFoundError) as caught:
        replace_file(path, lambda file: file.write(b"1"), make_folder=False)
    assert caught.value.filename == str(path)
    assert not path.parent.exists()


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    def fail(file: IO[bytes]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file.bin"
    with pytest.raises(OSError, match="No space left") as caught:
        replace_file(path, fail)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert list(tmp_path.iterdir()) == []


def test_one_opening_of_a_file_has_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("a") as one:
        assert lock(one)
        with path.open("a") as other:
            assert lock(other) is False
    with path.open("a") as other:
        assert lock(other)


class Full(FileIO):
    """A disk with room for three bytes at a time, and then for none."""

    room = 3

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room, part = 0, memoryview(data)[: self.room]
        return super().write(part)


def test_all_or_nothing_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with FileIO(path, "ab") as file:
        append_whole(file, b"first\n")
    with Full(path, "ab") as full, pytest.raises(OSError, match="No space left"):
        append_whole(full, b"second\n")
    assert path.read_bytes() == b"first\n"
