"""The download of Omniglot's archives, from a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import re
import socket
import threading
import urllib.error
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from torchvision.datasets import Omniglot

from metalearn.data.omniglot_download import fetch
from metalearn.errors import DataError

PARTS = ("images_background", "images_evaluation")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that torchvision's Omniglot downloads from; what is in an archive is no matter."""
    folder = tmp_path / "served"
    folder.mkdir()
    for part in PARTS:
        (folder / f"{part}.zip").write_bytes(part.encode() * 500)
    handler = partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{running.server_address[1]}"
        sums = {p: hashlib.md5((folder / f"{p}.zip").read_bytes()).hexdigest() for p in PARTS}
        monkeypatch.setattr(Omniglot, "download_url_prefix", url)
        monkeypatch.setattr(Omniglot, "zips_md5", sums)
        yield folder
        running.shutdown()
        thread.join()


def test_both_archives_arrive(server: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "omniglot-py"
    assert fetch(folder, allowed=True) == {part: folder / f"{part}.zip" for part in PARTS}
    assert sorted(path.name for path in folder.iterdir()) == [f"{part}.zip" for part in PARTS]
    for part in PARTS:
        assert (folder / f"{part}.zip").read_bytes() == part.encode() * 500
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("fault", ["absent", "damaged"])
def test_failed_download_leaves_nothing_half_done(server: Path, tmp_path: Path, fault: str) -> None:
    path, folder = server / "images_evaluation.zip", tmp_path / "here"
    whole = path.read_bytes()
    path.unlink() if fault == "absent" else path.write_bytes(whole[:-500])
    with pytest.raises(DataError, match=r"the download failed: .*(404|checksum)"):
        fetch(folder, allowed=True)
    assert [there.name for there in folder.iterdir()] == ["images_background.zip"]
    path.write_bytes(whole)
    (server / "images_background.zip").unlink()
    assert len(fetch(folder, allowed=True)) == 2, "the next try fetches only what is missing"


def test_no_network_names_three_ways_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refused)
    ways = (
        f"put the archives images_background.zip and images_evaluation.zip into {tmp_path}, set "
        "root to the folder that has them, or use glyphs"
    )
    with pytest.raises(DataError, match=rf"failed: .*no route to host.*\): {re.escape(ways)}$"):
        fetch(tmp_path, allowed=True)
    assert not any(tmp_path.iterdir())
    with pytest.raises(DataError, match=rf"is not in .* \(download=False\): {re.escape(ways)}$"):
        fetch(tmp_path, allowed=False)


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/here \(the download failed: .*Not a directory"):
        fetch(tmp_path / "file" / "here", allowed=True)
