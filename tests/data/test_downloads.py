"""Downloads from a server on this machine: resumed, held to a checksum, whole or not there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metalearn.data import downloads
from metalearn.data.downloads import RemoteFile, download
from metalearn.errors import DataError
from metalearn.files import lock
from tests.support.file_server import FileServer, served

CONTENT = bytes(range(256)) * 40
OTHER = CONTENT[::-1] + b"longer"
ONE = '"one"'


@pytest.fixture
def server() -> Iterator[FileServer]:
    with served(CONTENT) as running:
        yield running


def remote(server: FileServer, content: bytes = CONTENT, kind: str = "sha256") -> RemoteFile:
    digest = hashlib.new(kind, content).hexdigest()
    return RemoteFile(server.url, f"{kind}:{digest}", 2**20)


def interrupt(server: FileServer, path: Path, *bytes_of_answers: int) -> None:
    """A download that ends early, for good: the last answer brings nothing."""
    server.breaks = [*bytes_of_answers, 0]
    with pytest.raises(DataError, match="are kept, and the next try goes on from there"):
        download(remote(server), path)
    server.asked.clear()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["sha256", "md5"])
@pytest.mark.parametrize("sized", [True, False])
def test_a_file_arrives_whole_and_alone(
    server: FileServer, tmp_path: Path, kind: str, sized: bool
) -> None:
    server.sized = sized
    path = tmp_path / "new" / "folder" / "a.bin"
    assert download(remote(server, kind=kind), path) == path
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["a.bin"]
    assert download(remote(server, kind=kind), path) == path
    assert server.asked == [(None, None)], "a file that is there is not fetched again"


def test_a_connection_that_ends_is_gone_on_with(server: FileServer, tmp_path: Path) -> None:
    server.breaks = [1000, 500]
    download(remote(server), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked == [(None, None), ("bytes=1000-", ONE), ("bytes=1500-", ONE)]
    assert names(tmp_path) == ["a.bin"]


def test_a_later_call_goes_on(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    server.breaks = [1000, 0]
    sentence = (
        f"{server.url}: the connection ended after 1000 of {len(CONTENT)} bytes; 1000 bytes are "
        "kept, and the next try goes on from there"
    )
    with pytest.raises(DataError, match=f"^{re.escape(sentence)}$"):
        download(remote(server), path)
    assert names(tmp_path) == [".a.bin.part", ".a.bin.part.json"]
    server.asked.clear()
    download(remote(server), path)
    assert server.asked == [("bytes=1000-", ONE)]
    assert path.read_bytes() == CONTENT and names(tmp_path) == ["a.bin"]


def test_a_server_that_gives_no_parts_is_asked_for_all(server: FileServer, tmp_path: Path) -> None:
    interrupt(server, tmp_path / "a.bin", 1000)
    server.ranges = False
    download(remote(server), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.asked == [("bytes=1000-", ONE)]


@pytest.mark.parametrize("heeds", [True, False])
@pytest.mark.parametrize("content", [OTHER, CONTENT[::-1], CONTENT[-600:]])
def test_a_file_that_changed_in_between_is_fetched_anew(
    server: FileServer, tmp_path: Path, content: bytes, heeds: bool
) -> None:
    """Another length, the same one, or fewer bytes than had come; whether If-Range is heeded."""
    interrupt(server, tmp_path / "a.bin", 1000)
    server.content, server.tag, server.heeds_tag = content, '"two"', heeds
    download(remote(server, content), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == content
    assert names(tmp_path) == ["a.bin"]


def test_without_a_tag_the_checksum_tells_of_a_changed_file(
    server: FileServer, tmp_path: Path
) -> None:
    server.tag = 'W/"weak"'
    interrupt(server, tmp_path / "a.bin", 1000)
    server.content = CONTENT[::-1]
    download(remote(server, CONTENT[::-1]), tmp_path / "a.bin")
    assert server.asked == [("bytes=1000-", None), (None, None)]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT[::-1]


def test_parts_that_were_not_asked_for_are_not_taken(server: FileServer, tmp_path: Path) -> None:
    interrupt(server, tmp_path / "a.bin", 1000)
    server.shift = 7
    download(remote(server), tmp_path / "a.bin")
    assert server.asked == [("bytes=1000-", ONE), (None, None)]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("state", [b"{}", b"no json", b'{"url": 5}', b"[]"])
def test_a_part_of_which_nothing_is_known_is_thrown_away(
    server: FileServer, tmp_path: Path, state: bytes
) -> None:
    (tmp_path / ".a.bin.part").write_bytes(b"anything")
    (tmp_path / ".a.bin.part.json").write_bytes(state)
    download(remote(server), tmp_path / "a.bin")
    assert server.asked == [(None, None)]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_part_that_is_whole_is_not_fetched_again(server: FileServer, tmp_path: Path) -> None:
    interrupt(server, tmp_path / "a.bin", 1000)
    (tmp_path / ".a.bin.part").write_bytes(CONTENT)
    download(remote(server), tmp_path / "a.bin")
    assert server.asked == [] and names(tmp_path) == ["a.bin"]


def test_a_wrong_checksum_leaves_nothing(server: FileServer, tmp_path: Path) -> None:
    expected = remote(server, OTHER)
    with pytest.raises(DataError, match="checksum of what arrived is sha256:.*nothing of it is k"):
        download(expected, tmp_path / "a.bin")
    assert names(tmp_path) == [] and len(server.asked) == 1


@pytest.mark.parametrize("sized", [True, False])
def test_a_file_that_is_too_large_is_not_taken(
    server: FileServer, tmp_path: Path, sized: bool
) -> None:
    server.sized = sized
    small = RemoteFile(server.url, remote(server).checksum, 100)
    with pytest.raises(DataError, match="bytes or more; at most 100 are taken"):
        download(small, tmp_path / "a.bin")
    assert names(tmp_path) == []


@pytest.mark.parametrize("status", [404, 500])
def test_what_the_server_says_is_said(server: FileServer, tmp_path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(DataError, match=rf"^http://.*/file: HTTP Error {status}: [^;]*$"):
        download(remote(server), tmp_path / "a.bin")
    assert names(tmp_path) == []


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with served(b"") as gone:
        pass
    with pytest.raises(DataError, match=r"/file: \[Errno \d+\] .*refused$"):
        download(remote(gone), tmp_path / "a.bin")
    assert names(tmp_path) == []


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://a/b", "a.bin"])
def test_other_addresses_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match=f"^{url}: an address of http or https is needed$"):
        download(RemoteFile(url, "md5:0", 10), tmp_path / "a.bin")


def test_another_file_in_its_place_is_named(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"something else")
    with pytest.raises(DataError, match=r"a\.bin: its checksum is sha256:.*remove it, and it is f"):
        download(remote(server), path)
    assert path.read_bytes() == b"something else" and server.asked == []


def test_one_process_at_a_time(server: FileServer, tmp_path: Path) -> None:
    with (tmp_path / ".a.bin.part").open("ab") as file:
        if lock(file) is None:
            pytest.skip("no locks here")
        with pytest.raises(DataError, match=r"a\.bin is being downloaded by another process$"):
            download(remote(server), tmp_path / "a.bin")
    assert server.asked == []


def test_a_file_that_another_process_has_finished_leaves_no_part(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.bin"

    def other_was_faster(file: Any) -> bool:
        path.write_bytes(CONTENT)
        return True

    monkeypatch.setattr(downloads, "lock", other_was_faster)
    assert downloads.download(remote(server), path) == path
    assert names(tmp_path) == ["file.bin"]


def test_a_full_disk_is_an_error_of_the_disk(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="Not a directory|File exists"):
        download(remote(server), tmp_path / "file" / "a.bin")
