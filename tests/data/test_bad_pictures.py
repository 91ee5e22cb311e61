"""Files that are no pictures, or bombs: each is named and refused, or left out, none waited for."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from metalearn.data import folder_data, load_folder, torchvision_data
from metalearn.data.omniglot_source import fingerprint, read_pictures
from metalearn.data.packed import read_pack
from metalearn.data.pictures import decode
from metalearn.errors import DataError
from tests.data.test_omniglot_source import ALPHABET, archive, members
from tests.support.bad_pictures import FILES, encoded, png

NAMES = list(FILES)
_Popen = subprocess.Popen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six classes of one good picture."""
    for name in "abcdef":
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "good.png").write_bytes(encoded("png"))
    return tmp_path / "set"


@pytest.fixture(autouse=True)
def no_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ghostscript, or any other program, is not even looked for."""

    def refuse(*arguments: object, **options: object) -> None:
        pytest.fail(f"a program is started: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(EpsImagePlugin, "has_ghostscript", refuse)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_picture_is_named_with_its_cause(folder: Path, name: str) -> None:
    put, cause = FILES[name]
    put(folder / "c" / "bad.png")
    sentence = rf"set: 1 file cannot be read as a picture: c/bad\.png \(.*({cause})"
    with pytest.raises(DataError, match=sentence) as refusal:
        load_folder(folder, image_size=4)
    assert "\n" not in str(refusal.value)
    assert load_folder(folder, image_size=4, on_corrupt="skip").labels.tolist() == list(range(6))


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "bmp", "webp", "gif", "tif", "TIFF"])
@pytest.mark.parametrize("name", ["a pipe", "a link to an endless device", "EPS", "a PNG bomb"])
def test_whatever_it_is_called(folder: Path, name: str, suffix: str) -> None:
    put, cause = FILES[name]
    put(folder / "c" / f"bad.{suffix}")
    with pytest.raises(DataError, match=cause):
        load_folder(folder, image_size=4)


def test_all_of_them_at_once_are_left_out(folder: Path) -> None:
    for number, (put, _) in enumerate(FILES.values()):
        (folder / f"{number:03d}").mkdir()
        put(folder / f"{number:03d}" / "bad.png")
        (folder / f"{number:03d}" / "good.png").write_bytes(encoded("png"))
    for name in "abcdef":
        for number in range(4):
            (folder / name / f"{number}.png").write_bytes(encoded("png"))
    data = load_folder(folder, image_size=4, on_corrupt="skip")
    assert data.labels.bincount().tolist() == [1] * len(FILES) + [5] * 6
    for number in range(len(FILES)):
        for again in range(2):
            (folder / f"{number:03d}" / f"{again}.png").write_bytes(encoded("png"))
    samples = folder_data(folder, image_size=4, on_corrupt="skip")
    assert samples.targets.bincount().tolist() == [3] * len(FILES) + [5] * 6


def test_pictures_take_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(png(8192, 6144, rows=6144, kind=2))
    (tmp_path / "bomb").write_bytes(png(12_800, 12_800, rows=12_800))
    code = """
import resource, sys
from metalearn.data.pictures import PictureError, decode

def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

for name in ("bomb", "large"):
    data, before, word = open(name, "rb").read(), used(), "read"
    try:
        decode(data, 3, 28)
    except PictureError:
        word = "refused"
    print(word, used() - before)
"""
    with _Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=tmp_path) as process:
        out, _ = process.communicate()
    refused, bomb, read, large = out.decode().split()
    assert (refused, read) == ("refused", "read")
    assert int(bomb) < 20 and int(large) < 500  # megabytes


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("shape", [(20, 60), (60, 20), (33, 33), (1, 9)])
def test_cutting_first_changes_no_pixel(mode: str, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (*shape, 4), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    image.save(buffer := io.BytesIO(), "png")
    side, (height, width) = min(shape), shape
    top, left = (height - side) // 2, (width - side) // 2
    whole = decode(buffer.getvalue(), 3)
    square = Image.fromarray(whole[top : top + side, left : left + side])
    expected = np.asarray(square.resize((7, 7), Image.Resampling.BILINEAR))
    assert np.array_equal(decode(buffer.getvalue(), 3, 7), expected)


def test_names_that_are_no_utf8_are_read(folder: Path) -> None:
    odd = Path(str(folder) + "/\udcff\udcfe")
    odd.mkdir()
    (odd / "good.png").write_bytes(encoded("png"))
    assert len(load_folder(folder, image_size=4).class_names) == 7


# --- archives -------------------------------------------------------------------------------


def _with(tmp_path: Path, change: Callable[[zipfile.ZipFile, str, bytes], None]) -> Path:
    """Omniglot's archive in which the second character's fifth drawing is changed."""
    files = members()
    name = next(n for n in files if "character02" in n and n.endswith("_05.png"))
    data = files.pop(name)
    path = archive(tmp_path, files)
    with zipfile.ZipFile(path, "a") as opened:
        change(opened, name, data)
    return path


def _inflated(opened: zipfile.ZipFile, name: str, data: bytes) -> None:
    opened.writestr(name, data + bytes(30_000_000), zipfile.ZIP_DEFLATED)


def _lzma(opened: zipfile.ZipFile, name: str, data: bytes) -> None:
    opened.writestr(name, data, zipfile.ZIP_LZMA)


def _bzip2(opened: zipfile.ZipFile, name: str, data: bytes) -> None:
    opened.writestr(name, data, zipfile.ZIP_BZIP2)


def _link(opened: zipfile.ZipFile, name: str, data: bytes) -> None:
    member = zipfile.ZipInfo(name)
    member.external_attr = 0o120777 << 16
    opened.writestr(member, "/etc/passwd")


def _huge(opened: zipfile.ZipFile, name: str, data: bytes) -> None:
    opened.writestr(name, png(12_000, 12_000, bits=1), zipfile.ZIP_DEFLATED)


def _eps(opened: zipfile.ZipFile, name: str, data: bytes) -> None:
    opened.writestr(name, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 105 105\n")


def _other_size(opened: zipfile.ZipFile, name: str, data: bytes) -> None:
    opened.writestr(name, encoded("png", (106, 105), "L"))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (_inflated, "3000.* bytes; at most 65536 are read"),
        (_lzma, "compressed by method 14; deflate is read"),
        (_bzip2, "compressed by method 12; deflate is read"),
        (_link, "no readable PNG"),
        (_huge, "12000x12000 pixels|exceeds limit"),
        (_eps, "no readable PNG"),
        (_other_size, "is 106x105, not 105x105 pixels"),
    ],
)
def test_members_are_looked_at_before_they_are_inflated(
    tmp_path: Path, change: Callable[[zipfile.ZipFile, str, bytes], None], cause: str
) -> None:
    path = _with(tmp_path, change)
    with pytest.raises(DataError, match=rf"evaluation\.zip: .*character02/0966_05\.png.*({cause})"):
        read_pictures(path, ALPHABET, 28)


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, members())
    data = bytearray(path.read_bytes())
    place = -1
    while (place := data.find(b"PK\x01\x02", place + 1)) >= 0:
        data[place + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="character.*it is encrypted"):
        read_pictures(path, ALPHABET, 28)


def test_names_that_climb_write_nothing(tmp_path: Path) -> None:
    files = {f"../../{name}": data for name, data in members().items()}
    (tmp_path / "a" / "b").mkdir(parents=True)
    before = set(tmp_path.rglob("*"))
    path = archive(tmp_path / "a" / "b", files)
    assert len(read_pictures(path, ALPHABET, 28)) == 3
    assert set(tmp_path.rglob("*")) == before | {path}


def test_a_drawing_twice_is_refused(tmp_path: Path) -> None:
    def twice(opened: zipfile.ZipFile, name: str, data: bytes) -> None:
        opened.writestr(name, data)
        opened.writestr(name, data)

    with pytest.warns(UserWarning, match="Duplicate name"):
        path = _with(tmp_path, twice)
    with pytest.raises(DataError, match="character02 has 21 of 20 drawings"):
        read_pictures(path, ALPHABET, 28)


@pytest.mark.parametrize("kind", ["a link to an endless device", "a pipe", "a file of 65 MiB"])
def test_drawings_and_archives_are_files(tmp_path: Path, kind: str) -> None:
    put, cause = FILES[kind]
    cause = cause.replace("67108864", r"\d+")
    for name, data in members().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    one = tmp_path / next(iter(members()))
    one.unlink()
    put(one)
    with pytest.raises(DataError, match=rf"character01/.*{cause}"):
        read_pictures(tmp_path / "images_evaluation", ALPHABET, 28)
    whole = tmp_path / "images_evaluation.zip"
    put(whole)
    for read in (lambda: read_pictures(whole, ALPHABET, 28), lambda: fingerprint([whole])):
        with pytest.raises(DataError, match=rf"images_evaluation\.zip .*{cause}"):
            read()


@pytest.mark.parametrize("kind", ["a link to an endless device", "a pipe", "a file of 1 TiB"])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("mnist", "MNIST/processed/training.pt"),
        ("fashion_mnist", "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz"),
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
    ],
)
def test_what_torchvision_would_read_is_a_file(
    tmp_path: Path, name: str, file: str, kind: str
) -> None:
    put, cause = FILES[kind]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    put(tmp_path / file)
    cause = cause.replace("67108864", r"\d+")
    with pytest.raises(DataError, match=rf"{Path(file).name}: .*{cause}"):
        torchvision_data(name, root=tmp_path, download=False)  # type: ignore[arg-type]


def _objects(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, header=np.array({"a": 1}, dtype=object), images=np.zeros(3))


def _claims(path: Path, name: str = "header", packed: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", packed) as changed:
        head = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (9"
        head = head.replace(b"(9", b"(" + b"9" * 15) + b",), }"
        changed.writestr(f"{name}.npy", head.ljust(127) + b"\n" + b"x")


def _claims_of_images(path: Path) -> None:
    _claims(path, "a_picture")


def _claims_of_packed_images(path: Path) -> None:
    _claims(path, "a_picture", zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize(
    "put",
    [
        _objects,
        _claims,
        _claims_of_images,
        _claims_of_packed_images,
        *(FILES[k][0] for k in ("a pipe", "a link to an endless device", "text")),
    ],
)
def test_packs_are_not_unpickled_or_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, put: Callable[[Path], None]
) -> None:
    path = tmp_path / "pack.npz"
    put(path)
    assert read_pack(path) is None
    assert "is damaged and is left aside" in caplog.text
