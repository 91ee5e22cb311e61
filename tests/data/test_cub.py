"""CUB from a small archive in the official layout."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest
import torch

from metalearn.data import LabelledImages, cub, load_cub
from metalearn.data.downloads import RemoteFile
from metalearn.errors import DataError, SettingError
from tests.support.file_server import served
from tests.support.picture_sets import small_picture, write_files, write_tar

NAMES = [f"{number:03d}.Bird_{number}" for number in range(1, 201)]


def pictures(names: list[str] = NAMES) -> dict[str, bytes]:
    files = {"CUB_200_2011/images.txt": b"1 a", "attributes.txt": b""}
    for number, name in enumerate(names):
        for i in (1, 0):
            picture = small_picture(number, kind="JPEG" if i else "PNG")
            files[f"CUB_200_2011/images/{name}/bird_{i}.jpg"] = picture
    return files


def assert_whole(data: LabelledImages) -> None:
    assert data.images.shape == (400, 3, 4, 4)
    assert data.class_names == tuple(NAMES)
    assert data.images[::2, 0, 0, 0].tolist() == list(range(200))  # PNG, exact
    assert data.labels.tolist() == [c for c in range(200) for _ in range(2)]
    assert data.splits["train"] == tuple(range(0, 200, 2))
    assert data.splits["validation"] == tuple(range(1, 200, 4))
    assert data.splits["test"] == tuple(range(3, 200, 4))


@pytest.mark.parametrize("place", ["archive", "beside", "unpacked", "above", "images alone"])
def test_pictures_and_splits(place: str, tmp_path: Path) -> None:
    if place in ("archive", "beside"):
        root = write_tar(tmp_path / "set" / "CUB_200_2011.tgz", pictures())
        root = root if place == "archive" else root.parent
    else:
        root = write_files(tmp_path / "set", pictures().items())
        inside = {"unpacked": "CUB_200_2011", "above": "", "images alone": "CUB_200_2011/images"}
        root = root / inside[place]
    for _ in range(2):
        assert_whole(load_cub(root, image_size=4, cache=tmp_path / "cache"))


def test_other_birds_are_refused(tmp_path: Path) -> None:
    root = write_files(tmp_path / "set", pictures(NAMES[:-1]).items())
    with pytest.raises(
        DataError, match=r"199 classes from 001\.Bird_1 to 199\.Bird_199; CUB has 2"
    ):
        load_cub(root, image_size=4, cache=tmp_path / "cache")


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "CUB_200_2011.tgz", {"something": b"else"})
    with pytest.raises(DataError, match=r"no pictures CUB_200_2011/images/"):
        load_cub(path, cache=tmp_path)
    whole = write_tar(path, pictures()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError, match=r"tgz cannot be read \(.*\): remove it and fetch the offic"
    ):
        load_cub(path, cache=tmp_path)
    with pytest.raises(
        SettingError, match=r"root=.*CUB_200_2011\.tgz, or what it unpacks to, is n"
    ):
        load_cub(tmp_path / "nowhere")


@pytest.mark.parametrize("number", ["GNU.sparse.map", "size"])
def test_numbers_of_an_archive_that_are_none_are_its_damage(number: str, tmp_path: Path) -> None:
    path = tmp_path / "CUB_200_2011.tgz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("CUB_200_2011/images/001.Bird_1/bird.jpg")
        member.pax_headers = {number: "9" * 30 if number == "size" else "many"}
        archive.addfile(member)
    with pytest.raises(DataError, match=r"tgz cannot be read \(.*\): remove it and fetch|001.*CUB"):
        load_cub(path, cache=tmp_path)


def test_the_archive_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"CUB is not in .*\(download=False\)"):
        load_cub(image_size=4, download=False)
    content = write_tar(tmp_path / "made.tgz", pictures()).read_bytes()
    with served(content) as server:
        server.breaks = [1000]
        checksum = f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}"
        monkeypatch.setattr(cub, "ARCHIVE", RemoteFile(server.url, checksum, 2**22))
        assert_whole(load_cub(image_size=4))
        assert [asked for asked, _ in server.asked] == [None, "bytes=1000-"]
    (tmp_path / "data" / "CUB_200_2011.tgz").unlink()
    data = load_cub(image_size=4, download=False)
    assert_whole(data)
    assert data.images.dtype == torch.uint8
