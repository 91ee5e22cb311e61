"""CIFAR-FS and FC100 from small archives in the official format."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from metalearn.data import LabelledImages, cifar100, load_cifar_fs, load_fc100
from metalearn.data.downloads import RemoteFile
from metalearn.data.known_splits import CIFAR100_SUPERCLASSES, CIFAR_FS, FC100
from metalearn.errors import DataError, SettingError
from tests.support.file_server import served
from tests.support.picture_sets import cifar_archive, cifar_parts

Load = Callable[..., LabelledImages]
LOADERS = [(load_cifar_fs, CIFAR_FS), (load_fc100, FC100)]


def unpacked(folder: Path, **parts: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (parts or cifar_parts()).items():
        (folder / name).write_bytes(content)
    return folder


def assert_whole(data: LabelledImages) -> None:
    """Pictures sorted by class, training part first; superclasses as groups."""
    assert data.images.dtype == torch.uint8 and data.images.shape == (400, 3, 32, 32)
    assert data.labels.tolist() == [c for c in range(100) for _ in range(4)]
    assert torch.equal(data.images[:, 0, 3, 5].long(), data.labels)
    assert data.images[:, 1, 7, 9].tolist() == [0, 1, 2, 3] * 100
    assert (data.images[:, 2] == 200).all()
    assert data.class_names[:3] == ("apple", "aquarium_fish", "baby")
    for name, group in zip(data.class_names, data.class_groups):
        assert name in CIFAR100_SUPERCLASSES[group]


@pytest.mark.parametrize(("load", "splits"), LOADERS)
@pytest.mark.parametrize("place", ["archive", "folder of it", "unpacked", "above"])
def test_pictures_and_splits(
    load: Load, splits: dict[str, object], place: str, tmp_path: Path
) -> None:
    if place in ("archive", "folder of it"):
        archive = cifar_archive(tmp_path)
        root = archive if place == "archive" else tmp_path
    else:
        folder = unpacked(tmp_path / "cifar-100-binary")
        root = folder if place == "unpacked" else tmp_path
    data = load(root)
    assert_whole(data)
    found = {s: tuple(data.class_names[c] for c in chosen) for s, chosen in data.splits.items()}
    assert found == splits


def test_pictures_of_another_size_are_averages(tmp_path: Path) -> None:
    root = unpacked(tmp_path)
    data, whole = load_cifar_fs(root, image_size=16), load_cifar_fs(root)
    assert data.image_shape == (3, 16, 16)
    means = whole.images.view(400, 3, 16, 2, 16, 2).double().mean((3, 5))
    assert torch.equal(data.images, (means + 0.5).floor().to(torch.uint8))


@pytest.mark.parametrize("size", [0, 257, True, 3.0])
def test_sizes_that_cannot_be(size: object, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"image_size=.*whole number"):
        load_cifar_fs(tmp_path, image_size=size)  # type: ignore[arg-type]


def test_a_root_without_the_set_is_a_setting(tmp_path: Path) -> None:
    sentence = r"root='.*': cifar-100-binary\.tar\.gz or a folder with it is needed"
    with pytest.raises(SettingError, match=sentence):
        load_fc100(tmp_path)
    with pytest.raises(SettingError, match=sentence):
        load_fc100(tmp_path / "nowhere")


def _short(parts: dict[str, bytes]) -> dict[str, bytes]:
    return parts | {"test.bin": parts["test.bin"][:-1]}


def _empty(parts: dict[str, bytes]) -> dict[str, bytes]:
    return parts | {"train.bin": b""}


def _whole_records(parts: dict[str, bytes]) -> dict[str, bytes]:
    return parts | {"train.bin": parts["train.bin"][: -5 * 3074]}


def _foreign_class(parts: dict[str, bytes]) -> dict[str, bytes]:
    return parts | {"test.bin": parts["test.bin"][:1] + b"\xc8" + parts["test.bin"][2:]}


def _foreign_group(parts: dict[str, bytes]) -> dict[str, bytes]:
    first = (parts["test.bin"][0] + 1) % 20
    return parts | {"test.bin": bytes([first]) + parts["test.bin"][1:]}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_short, "test.bin is cut short: 307399 bytes are no whole number of records of 3074"),
        (_empty, "train.bin is cut short: 0 bytes are no whole number"),
        (_whole_records, "train.bin is cut short: . pictures of .* of each there are as many"),
        (_foreign_class, "test.bin has classes that CIFAR-100 does not have"),
        (_foreign_group, "test.bin has classes that CIFAR-100 does not have"),
    ],
)
def test_damaged_parts_are_named(
    change: Callable[[dict[str, bytes]], dict[str, bytes]],
    sentence: str,
    packed: bool,
    tmp_path: Path,
) -> None:
    parts = change(cifar_parts())
    root = cifar_archive(tmp_path, parts) if packed else unpacked(tmp_path, **parts)
    with pytest.raises(DataError, match=f"^{re.escape(str(root))}: {sentence}"):
        load_cifar_fs(root)


@pytest.mark.parametrize("damage", ["cut", "not one", "part missing"])
def test_damaged_archives_are_named(damage: str, tmp_path: Path) -> None:
    archive = cifar_archive(tmp_path)
    if damage == "cut":
        archive.write_bytes(archive.read_bytes()[:-2000])
    elif damage == "not one":
        archive.write_bytes(b"<html>" * 100)
    else:
        archive = cifar_archive(tmp_path, {"train.bin": cifar_parts()["train.bin"]})
    with pytest.raises(
        DataError, match=r"tar\.gz cannot be read \(.*\): remove it and fetch the o"
    ):
        load_cifar_fs(tmp_path)


def test_the_archive_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = cifar_archive(tmp_path / "made").read_bytes()
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))
    with pytest.raises(DataError, match=r"is not in .*data \(download=False\): put the official"):
        load_cifar_fs(download=False)
    with served(content) as server:
        checksum = f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}"
        monkeypatch.setattr(cifar100, "ARCHIVE", RemoteFile(server.url, checksum, 2**20))
        assert_whole(load_cifar_fs())
        assert_whole(load_fc100())
        assert len(server.asked) == 1
    assert_whole(load_fc100(download=False))


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    with served(b"another file") as server:
        monkeypatch.setattr(cifar100, "ARCHIVE", RemoteFile(server.url, "md5:00", 2**20))
        sentence = r"\(the download failed: .*checksum.*\): put the official cifar-100-binary\.tar"
        with pytest.raises(DataError, match=sentence):
            load_cifar_fs()
    assert not any(tmp_path.iterdir())


def test_pixels_are_those_of_the_records() -> None:
    parts = cifar_parts()
    row = np.frombuffer(parts["train.bin"], np.uint8).reshape(-1, 3074)[0]
    assert row[2] == row[1] and row[2 + 1024] in (0, 1, 2) and row[2 + 2048] == 200
