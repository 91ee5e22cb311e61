"""Omniglot's archives and folders: every fault is named."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn.data.omniglot_source import fingerprint, read_pictures
from metalearn.errors import DataError

ALPHABET = {"Angelic": 3}
SECOND = "images_evaluation/Angelic/character02"


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(buffer, "png")
    return buffer.getvalue()


def members() -> dict[str, bytes]:
    """Three characters; drawing d is white with d black rows on top."""
    files = {}
    for drawer in range(1, 21):
        pixels = np.full((105, 105), 255, np.uint8)
        pixels[:drawer] = 0
        for number in (1, 2, 3):
            path = f"images_evaluation/Angelic/character{number:02d}"
            files[f"{path}/{number + 964:04d}_{drawer:02d}.png"] = png(pixels)
    return files


def archive(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "images_evaluation.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for name in sorted(files, reverse=True):
            opened.writestr(name, files[name])
    return path


def test_drawings_come_by_drawer_and_inverted(tmp_path: Path) -> None:
    pictures = read_pictures(archive(tmp_path, members()), ALPHABET, 105)
    assert list(pictures) == [f"Angelic/character{number:02d}" for number in (1, 2, 3)]
    for drawings in pictures.values():
        assert [int(d[:, 0].sum()) for d in drawings] == [255 * d for d in range(1, 21)]


def test_foreign_files_are_passed_over(tmp_path: Path) -> None:
    files = members()
    files["__MACOSX/images_evaluation/Angelic/character01/0965_01.png"] = b"resource fork"
    files["images_evaluation/.DS_Store"] = files["README.txt"] = b""
    assert len(read_pictures(archive(tmp_path, files), ALPHABET, 28)) == 3


@pytest.mark.parametrize("kept", [0, 50, -2000, -5])
def test_truncated_archive_is_refused_by_name(tmp_path: Path, kept: int) -> None:
    path = archive(tmp_path, members())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"images_evaluation.zip is not a whole zip archive \("):
        read_pictures(path, ALPHABET, 28)


def test_flipped_byte_is_refused_by_name(tmp_path: Path) -> None:
    path = archive(tmp_path, members())
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 255
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"evaluation.zip: .*character03/0967_20.png cannot be r"):
        read_pictures(path, ALPHABET, 28)


def faulty(change: str) -> dict[str, bytes]:
    files = members()
    if change == "character":
        files = {name: data for name, data in files.items() if not name.startswith(SECOND)}
    elif change == "foreign":
        files["images_evaluation/Elvish/character01/0009_01.png"] = b""
    elif change == "drawing":
        del files[f"{SECOND}/0966_07.png"]
    elif change == "number":
        files[f"{SECOND}/0966_21.png"] = files.pop(f"{SECOND}/0966_07.png")
    elif change == "broken":
        files[f"{SECOND}/0966_07.png"] = files[f"{SECOND}/0966_07.png"][:60]
    elif change == "small":
        files[f"{SECOND}/0966_07.png"] = png(np.zeros((28, 30), np.uint8))
    return files


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("character", "2 of 3 characters; the first missing is Angelic/character02"),
        ("foreign", "Elvish/character01 is not one of Omniglot's characters"),
        ("drawing", "Angelic/character02 has 19 of 20 drawings"),
        ("number", "Angelic/character02's drawings are not numbered from 1 to 20"),
        ("broken", r".*Angelic/character02/0966_07.png cannot be read as a picture \("),
        ("small", ".*Angelic/character02/0966_07.png is 30x28, not 105x105 pixels"),
    ],
)
@pytest.mark.parametrize("unpacked", [False, True])
def test_faults_are_named(tmp_path: Path, change: str, sentence: str, unpacked: bool) -> None:
    path = archive(tmp_path, faulty(change))
    if unpacked:
        with zipfile.ZipFile(path) as opened:
            opened.extractall(tmp_path)
        path = tmp_path / "images_evaluation"
    with pytest.raises(DataError, match=f"{path.name}: {sentence}"):
        read_pictures(path, ALPHABET, 28)


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path = archive(tmp_path, members())
    with zipfile.ZipFile(path) as opened:
        opened.extractall(tmp_path)
    folder = tmp_path / "images_evaluation"
    before = fingerprint([path]), fingerprint([folder])
    assert before == (fingerprint([path]), fingerprint([folder]))
    archive(tmp_path, faulty("small"))
    (tmp_path / f"{SECOND}/0966_07.png").write_bytes(b"other")
    assert fingerprint([path]) != before[0] and fingerprint([folder]) != before[1]
