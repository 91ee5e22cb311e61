"""Packs: whole or not at all, and never believed when damaged."""

from __future__ import annotations

import errno
import mmap
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from metalearn.data import packed
from metalearn.data.mapped import mapped
from metalearn.data.packed import Pack, kept_pack, load_pack, read_pack, save_pack, write_pack
from metalearn.errors import DataError

ARRAYS = {"images": np.arange(600, dtype=np.uint8).reshape(6, 10, 10), "names": np.array(["a"])}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "things.npz"
    write_pack(path, Pack(ARRAYS, "a source"))
    pack = read_pack(path)
    assert pack is not None and pack.source == "a source" and set(pack.arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert np.array_equal(pack.arrays[name], array) and pack.arrays[name].dtype == array.dtype
    assert [file.name for file in path.parent.iterdir()] == ["things.npz"]


def test_missing_pack_is_none_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_pack(tmp_path / "things.npz") is None
    assert not caplog.records


DAMAGES = ["truncated", "flipped", "rubbish", "empty", "array", "object", "literal"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_pack_is_none(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "things.npz"
    write_pack(path, Pack(ARRAYS, "a source"))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"images.npy") + 200] ^= 255
    with np.load(path) as stored:
        header = stored["header"]
    if damage == "array":
        np.savez(path, header=header, **{**ARRAYS, "images": ARRAYS["images"] ^ 1})
    elif damage == "object":
        np.savez(path, header=header, images=np.array([{}], dtype=object))
    elif damage == "literal":  # the header of an array is read as one of Python's
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("header.npy", b"\x93NUMPY\x01\x00v\x00" + b"(" * 118)
    else:
        contents = {"truncated": whole[:-50], "flipped": flipped, "rubbish": b"x" * 99}
        path.write_bytes(contents.get(damage, b""))
    assert read_pack(path) is None
    assert "things.npz is damaged and is left aside" in caplog.text


def test_source_is_under_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "things.npz"
    write_pack(path, Pack(ARRAYS, "a source"))
    with np.load(path) as stored:
        header = str(stored["header"]).replace("a source", "b source")
    np.savez(path, header=np.array(header), **ARRAYS)
    assert read_pack(path) is None


def test_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    write_pack(tmp_path / "file" / "things.npz", Pack(ARRAYS, ""))
    assert "things.npz could not be written, the next load is slower" in caplog.text


def test_interrupted_write_leaves_the_old_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "things.npz"
    write_pack(path, Pack(ARRAYS, "old"))

    def interrupted(file: object, **arrays: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_pack(path, Pack(ARRAYS, "new"))
    pack = read_pack(path)
    assert pack is not None and pack.source == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["things.npz"]


def test_a_pack_that_is_needed_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "things.npz"
    with pytest.raises(FileNotFoundError):
        load_pack(path)
    save_pack(path, Pack(ARRAYS, "a source"))
    assert load_pack(path).source == "a source"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"things.npz is damaged: "):
        load_pack(path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        save_pack(tmp_path / "file" / "things.npz", Pack(ARRAYS, ""))


def test_what_is_written_is_read_whatever_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(packed, "_LARGEST", 100)
    arrays = {**ARRAYS, "labels": np.arange(50)}
    made = []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return arrays

    for _ in range(3):
        pack = kept_pack(tmp_path / "things.npz", "a source", make)
        assert all(np.array_equal(pack.arrays[name], array) for name, array in arrays.items())
    assert made == [1] and not caplog.records
    save_pack(tmp_path / "claims.npz", Pack({"zeros": np.zeros(10**4, np.uint8)}, ""))
    with pytest.raises(DataError, match="claim more than 100 bytes"):
        load_pack(tmp_path / "claims.npz")


REFUSALS = [errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_machine_without_room_is_no_damage(
    tmp_path: Path, refusal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "things.npz"
    write_pack(path, Pack(ARRAYS, "a source"))
    before = path.read_bytes()

    def refused(*given: object, **named: object) -> None:
        raise OSError(refusal, "no room")

    monkeypatch.setattr(mmap, "mmap", refused)
    said = r"things.npz cannot be mapped into memory \(no room\): it is not damaged"
    for read in (read_pack, load_pack, lambda path: kept_pack(path, "a source", pytest.fail)):
        with pytest.raises(DataError, match=said):
            read(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_parts_of_a_file_are_mapped_and_can_be_written_to_without_changing_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(256)) * 300)
    wanted = np.frombuffer(path.read_bytes(), np.uint8)
    with path.open("rb") as file:
        for start, shape in ((0, (3, 5)), (70001, (7, 2, 4)), (5, (0, 4)), (0, (76800,))):
            array = mapped(file, start, shape)
            size = array.size
            assert array.shape == shape
            assert np.array_equal(array.reshape(-1), wanted[start : start + size])
            array[...] = 9
        for start, size in ((0, 76801), (76800, 1)):
            with pytest.raises(ValueError, match="ends before its array"):
                mapped(file, start, (size,))
    assert path.read_bytes() == wanted.tobytes()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_file_larger_than_the_memory_is_mapped(tmp_path: Path) -> None:
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
        pytest.skip("this machine sets all memory aside that is asked for")
    told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    size = 2048 * sum(int(told[name].split()[0]) for name in ("MemTotal", "SwapTotal"))
    with (tmp_path / "sparse").open("w+b") as file:
        file.truncate(size)
        array = mapped(file, 0, (size // 4, 4))
        assert array.shape == (size // 4, 4) and array[-1].tolist() == [0] * 4
