"""Folders of ranks go with them, and those of ranks that were killed at the next start."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from metalearn.cli.rank_folders import rank_folder

HELD = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from metalearn.cli.rank_folders import rank_folder
with rank_folder() as folder:
    open(folder + "/note", "w").close()
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_goes_with_its_block_and_others_that_are_held_stay(place: Path) -> None:
    with rank_folder() as first, rank_folder() as second:
        assert first != second and {str(path) for path in place.iterdir()} == {first, second}
    assert list(place.iterdir()) == []
    with pytest.raises(KeyError), rank_folder():
        raise KeyError
    assert list(place.iterdir()) == []


def test_what_killed_ranks_left_goes_at_the_next_start(place: Path) -> None:
    outside = place / "elsewhere"
    outside.mkdir()
    (outside / "kept").touch()
    (place / "metalearn-rank-link").symlink_to(outside)
    (place / "metalearn-rank-file").touch()
    (place / "metalearn-rank-earlier").mkdir()
    command = [sys.executable, "-c", HELD, str(place)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    assert folder.is_dir() and not (place / "metalearn-rank-earlier").exists()
    with rank_folder():
        assert (folder / "note").is_file()  # of one that lives
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert folder.is_dir()
    with rank_folder():
        assert not folder.exists()
    assert {path.name for path in place.iterdir()} == {
        "elsewhere", "metalearn-rank-file", "metalearn-rank-link",
    }  # fmt: skip
    assert (outside / "kept").exists()
