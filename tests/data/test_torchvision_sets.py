"""MNIST, FashionMNIST and CIFAR-10 from small files in the official formats, and downloads."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import socket
import struct
import tarfile
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from metalearn.data import torchvision_data
from metalearn.errors import DataError, SettingError

COUNT = {"train": 60, "t10k": 20}
ROWS = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}


def pixels(part: str, size: int) -> np.ndarray:
    """Picture n of a part is filled with n, and 100 more in the test part."""
    shades = np.arange(COUNT[part], dtype=np.uint8) + (100 if part == "t10k" else 0)
    return np.repeat(shades[:, None], size, axis=1)


def labels(part: str) -> np.ndarray:
    return (np.arange(COUNT[part]) * 7 % 10).astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    """The IDX format of LeCun: big-endian magic (8: bytes, dimensions), sizes, values."""
    head = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    return head + array.tobytes()


def idx_files() -> dict[str, bytes]:
    files = {}
    for part, count in COUNT.items():
        files[f"{part}-images-idx3-ubyte"] = idx(pixels(part, 784).reshape(count, 28, 28))
        files[f"{part}-labels-idx1-ubyte"] = idx(labels(part))
    return files


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def write_idx(root: Path, name: str, files: dict[str, bytes]) -> Path:
    folder = root / ROWS[name].__name__ / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """cifar-10-python.tar.gz of few pictures, its checksums made official."""
    rows = np.concatenate([pixels("train", 3072), pixels("t10k", 3072)])
    rows[:, 1024:2048] = 200  # green
    kinds = np.concatenate([labels("train"), labels("t10k")])
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    edges = [*range(0, 61, 12), 80]
    files = {
        name: pickle.dumps({"data": rows[a:b], "labels": kinds[a:b].tolist()}, protocol=2)
        for name, a, b in zip(names, edges, edges[1:])
    }
    files["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")}, protocol=2)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    sums = [[name, md5(files[name])] for name in names]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", sums[5:])
    meta = {**datasets.CIFAR10.meta, "md5": md5(files["batches.meta"])}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(buffer.getvalue()))
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        assert socket.getdefaulttimeout() == 30, "a silent network must not hang the run"
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refused)


def assert_whole(data: Any, first: int) -> None:
    """The official test part as test split; training divided by class."""
    assert data.inputs.dtype == torch.uint8 and data.outputs == 10
    assert data.targets.tolist() == [*labels("train"), *labels("t10k")]
    assert data.inputs[:, 0, 5, 7].tolist() == [*range(60), *range(100, 120)]
    assert data.splits["test"].tolist() == list(range(60, 80))
    assert sorted([*data.splits["train"].tolist(), *data.splits["validation"].tolist()]) == [
        *range(60)
    ]
    assert data.targets[data.splits["validation"]].bincount().tolist() == [first] * 10


# --- what comes out -------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ROWS))
def test_unpacked_files(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path, name, idx_files())
    data = torchvision_data(name, root=tmp_path, download=False)
    assert data.input_shape == (1, 28, 28) and data.class_names == tuple(ROWS[name].classes)
    assert_whole(data, first=1)
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    usual = torchvision_data(name, validation_fraction=0.5)
    assert_whole(usual, first=3)
    assert torch.equal(usual.inputs, data.inputs)


@pytest.mark.parametrize("name", list(ROWS))
def test_archives_are_unpacked_without_a_network(
    name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = {f"{file}.gz": gzip.compress(content) for file, content in idx_files().items()}
    monkeypatch.setattr(ROWS[name], "resources", [(f, md5(c)) for f, c in packed.items()])
    write_idx(tmp_path, name, packed)
    assert_whole(torchvision_data(name, root=tmp_path), first=1)
    assert_whole(torchvision_data(name, root=tmp_path, download=False), first=1)


def test_cifar10(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    data = torchvision_data("cifar10", root=tmp_path)
    assert data.input_shape == (3, 32, 32) and data.class_names == tuple("abcdefghij")
    assert_whole(data, first=1)
    assert (data.inputs[:, 1] == 200).all() and (data.inputs[:, 2] == data.inputs[:, 0]).all()
    assert data.inputs.is_contiguous()


def test_the_seed_divides(tmp_path: Path) -> None:
    write_idx(tmp_path, "mnist", idx_files())
    parts = [torchvision_data(root=tmp_path, seed=s).splits["validation"] for s in (0, 0, 1)]
    assert torch.equal(parts[0], parts[1]) and not torch.equal(parts[0], parts[2])


# --- what cannot be had ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "label", "files"),
    [
        ("mnist", "MNIST", "MNIST/raw/.train,t10k.-.-ubyte.gz"),
        ("fashion_mnist", "FashionMNIST", "FashionMNIST/raw/.train,t10k.-.-ubyte.gz"),
        ("cifar10", "CIFAR10", "cifar-10-python.tar.gz"),
    ],
)
def test_a_failing_download_is_one_sentence(
    name: Any, label: str, files: str, tmp_path: Path
) -> None:
    sentence = rf"^{label} cannot be had from {tmp_path} \(.*no route to host.*\): remove what is "
    ways = f"put the official {files} there, set root to the folder that has them, or use digits$"
    with pytest.raises(DataError, match=f"{sentence}.*{ways}"):
        torchvision_data(name, root=tmp_path)
    assert socket.getdefaulttimeout() is None
    sentence = rf"^{label} cannot be had .*not found.*\): .*set download=true to fetch them, "
    with pytest.raises(DataError, match=sentence):
        torchvision_data(name, root=tmp_path, download=False)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("train-images-idx3-ubyte", b""),
        ("train-images-idx3-ubyte", b"not an idx file at all"),
        ("train-images-idx3-ubyte", idx_files()["train-images-idx3-ubyte"][:-1000]),
        ("train-images-idx3-ubyte", idx(np.zeros((60, 14, 14), np.uint8))),
        ("train-images-idx3-ubyte", idx(np.zeros((59, 28, 28), np.uint8))),
        ("t10k-labels-idx1-ubyte", idx(np.full(20, 10, np.uint8))),
        ("t10k-labels-idx1-ubyte", idx(np.zeros((20, 2), np.uint8))),
    ],
    ids=["empty", "other", "cut", "size", "count", "classes", "axes"],
)
def test_damaged_files(file: str, content: bytes, tmp_path: Path) -> None:
    write_idx(tmp_path, "mnist", idx_files() | {file: content})
    with pytest.raises(DataError, match=r"^MNIST cannot be had from .* \(.+\): remove what is dam"):
        torchvision_data(root=tmp_path)


def test_a_damaged_pickle_is_never_opened(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    torchvision_data("cifar10", root=tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps("something else"))
    with pytest.raises(DataError, match="CIFAR10 cannot be had .*not found or corrupted"):
        torchvision_data("cifar10", root=tmp_path, download=False)
    assert_whole(torchvision_data("cifar10", root=tmp_path), first=1)  # the archive is still there


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "svhn"}, "name='svhn': one of mnist, fashion_mnist, cifar10 is needed"),
        ({"validation_fraction": 1}, "validation_fraction=1: a number between 0 and 1 is needed"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        torchvision_data(**settings)
