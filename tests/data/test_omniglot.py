"""Omniglot as a whole: what comes out, where it is looked for, the pack."""

from __future__ import annotations

import io
import logging
import os
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.data import omniglot, omniglot_source
from metalearn.data.omniglot import load_omniglot
from metalearn.data.omniglot_layout import class_names
from metalearn.data.pictures import area_average
from metalearn.errors import DataError, SettingError

MINI = {"images_background": {"Greek": 2, "Latin": 1}, "images_evaluation": {"Angelic": 3}}
NAMES = (
    "Angelic/character01", "Angelic/character02", "Angelic/character03",
    "Greek/character01", "Greek/character02", "Latin/character01",
)  # fmt: skip


def drawing(character: str, drawer: int) -> np.ndarray:
    """Black on white like the originals: a bar whose place tells character and drawer apart."""
    pixels = np.full((105, 105), 255, np.uint8)
    row, column = 15 * NAMES.index(character), 4 * drawer
    pixels[row : row + 15, column : column + 8] = 0
    return pixels


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(buffer, "png")
    return buffer.getvalue()


def members(part: str) -> dict[str, bytes]:
    """Path to file content of one archive of the small set, in no good order."""
    names = class_names(MINI[part])
    files = {
        f"{part}/{name}/{number:04d}_{drawer:02d}.png": png(drawing(name, drawer))
        for number, name in enumerate(names)
        for drawer in range(1, 21)
    }
    return dict(sorted(files.items(), reverse=True))


def pack(folder: Path, part: str, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return folder / f"{part}.zip"


def pack_all(folder: Path) -> Path:
    for part in MINI:
        pack(folder, part, members(part))
    return folder


@pytest.fixture
def mini(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The loader with the small set's counts, its data and cache below a temporary folder."""
    monkeypatch.setattr(omniglot, "ALPHABETS", MINI)
    monkeypatch.setattr(
        omniglot, "divide", lambda names, split, groups: {"train": (0, 1), "test": (2,)}
    )
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The sources that were read; empty when a pack sufficed."""
    read: list[Path] = []

    def spy(source: Path, alphabets: dict[str, int], size: int) -> dict[str, np.ndarray]:
        read.append(source)
        return omniglot_source.read_pictures(source, alphabets, size)

    monkeypatch.setattr(omniglot, "read_pictures", spy)
    return read


# --- what comes out -------------------------------------------------------------------------


def test_pictures_are_inverted_and_lie_at_their_class_and_drawer(mini: Path) -> None:
    data = load_omniglot(pack_all(mini / "here"), image_size=105)
    assert data.class_names == NAMES
    assert data.class_groups == ("Angelic",) * 3 + ("Greek",) * 2 + ("Latin",)
    assert data.images.shape == (120, 1, 105, 105) and data.images.dtype == torch.uint8
    for label, name in enumerate(NAMES):
        for drawer in (1, 2, 20):
            index = 20 * label + drawer - 1
            assert data.labels[index] == label
            expected = torch.from_numpy(255 - drawing(name, drawer))
            assert torch.equal(data.images[index, 0], expected)


@pytest.mark.parametrize("size", [1, 28])
def test_size(mini: Path, size: int) -> None:
    data = load_omniglot(pack_all(mini / "here"), image_size=size)
    assert data.image_shape == (1, size, size)
    expected = area_average(255 - drawing(NAMES[0], 1)[None], size)
    assert torch.equal(data.images[0], torch.from_numpy(expected))


def test_unpacked_folders_give_the_same_as_archives(mini: Path) -> None:
    archives = load_omniglot(pack_all(mini / "zipped"))
    for part in MINI:
        with zipfile.ZipFile(mini / "zipped" / f"{part}.zip") as archive:
            archive.extractall(mini / "unpacked")
    (mini / "unpacked" / "images_background" / "notes.txt").write_text("not a picture")
    folders = load_omniglot(mini / "unpacked")
    assert torch.equal(archives.images, folders.images)
    assert torch.equal(archives.labels, folders.labels)


@pytest.mark.parametrize("place", ["omniglot-py", "omniglot", "."])
def test_usual_places_are_searched(mini: Path, place: str) -> None:
    pack_all(mini / "data" / place)
    assert len(load_omniglot(download=False).images) == 120
    assert len(load_omniglot(mini / "data").images) == 120


# --- what is refused ------------------------------------------------------------------------


def test_unknown_split_is_refused() -> None:
    with pytest.raises(SettingError, match="split='vinyals': one of random, alphabets, small1, s"):
        load_omniglot(split="vinyals")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 106, 28.0, True])
def test_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(SettingError, match=f"image_size={size}: a whole number from 1 to 105"):
        load_omniglot(image_size=size)


def test_root_without_the_set_is_refused(mini: Path) -> None:
    pack_all(mini / "data")  # not looked at: a named root stands for itself
    with pytest.raises(SettingError, match=r"root='.*void': a folder that holds images_backgrou"):
        load_omniglot(mini / "void")


def test_root_with_half_of_the_set_is_refused(mini: Path) -> None:
    pack(mini / "half", "images_background", members("images_background"))
    with pytest.raises(DataError, match=r"half: images_evaluation.zip is missing beside images_b"):
        load_omniglot(mini / "half")


def test_faulty_set_is_refused_and_not_kept(mini: Path) -> None:
    root = pack_all(mini / "here")
    files = members("images_background")
    del files["images_background/Greek/character01/0000_03.png"]
    pack(root, "images_background", files)
    with pytest.raises(DataError, match=r"background.zip: Greek/character01 has 19 of 20 drawings"):
        load_omniglot(root)
    assert not list((mini / "cache").iterdir()), "neither a pack nor a lock is left"


def test_nothing_anywhere_is_refused(mini: Path) -> None:
    pack(mini / "data" / "omniglot", "images_background", members("images_background"))
    with pytest.raises(DataError, match=r"is not in .*omniglot-py \(download=False\): put"):
        load_omniglot(download=False)


def test_what_is_downloaded_is_read(mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(folder: Path, *, allowed: bool) -> dict[str, Path]:
        assert allowed and folder == mini / "data" / "omniglot-py"
        return omniglot_source.parts_in(pack_all(folder))

    monkeypatch.setattr(omniglot, "fetch", fetch)
    assert len(load_omniglot().images) == 120


# --- the pack -------------------------------------------------------------------------------


def test_second_load_comes_from_the_pack(mini: Path, counted: list[Path]) -> None:
    root = pack_all(mini / "here")
    first, second = load_omniglot(root), load_omniglot(root)
    assert [path.name for path in counted] == ["images_background.zip", "images_evaluation.zip"]
    assert torch.equal(first.images, second.images)
    assert [path.name for path in (mini / "cache").iterdir()] == ["omniglot-28-v1.npz"]


def test_damaged_pack_is_built_again(
    mini: Path, counted: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    root = pack_all(mini / "here")
    first = load_omniglot(root)
    path = mini / "cache" / "omniglot-28-v1.npz"
    path.write_bytes(path.read_bytes()[:-99])
    assert torch.equal(load_omniglot(root).images, first.images)
    assert torch.equal(load_omniglot(root).images, first.images)
    assert len(counted) == 4 and "is damaged and is left aside" in caplog.text


def test_changed_source_is_read_again(mini: Path, counted: list[Path]) -> None:
    load_omniglot(pack_all(mini / "here"))
    files = members("images_evaluation")
    name = "images_evaluation/Angelic/character01/0000_01.png"
    files[name] = png(np.zeros((105, 105), np.uint8))
    pack(mini / "here", "images_evaluation", files)
    assert (load_omniglot(mini / "here").images[0] == 255).all()
    assert len(counted) == 4


def test_pack_stands_in_when_no_source_is_named_and_none_is_there(mini: Path) -> None:
    first = load_omniglot(pack_all(mini / "here"))
    assert torch.equal(load_omniglot(download=False).images, first.images)
    with pytest.raises(SettingError, match="root="):
        load_omniglot(mini / "gone")


def test_two_at_once_end_well(mini: Path) -> None:
    root = pack_all(mini / "here")
    results: list[torch.Tensor] = []
    threads = [
        threading.Thread(target=lambda: results.append(load_omniglot(root).images))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and all(torch.equal(results[0], other) for other in results)
    assert [path.name for path in (mini / "cache").iterdir()] == ["omniglot-28-v1.npz"]


# --- the real set ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = os.environ.get("METALEARN_DATA")
    if not folder or omniglot._find(Path(folder)) is None:
        pytest.skip("the real Omniglot is not in METALEARN_DATA")
    return Path(folder), tmp_path_factory.mktemp("cache")


def test_real_set_is_whole(real: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    root, cache = real
    first = load_omniglot(root, cache=cache)
    start = time.process_time()
    second = load_omniglot(root, cache=cache, split="small1")
    assert time.process_time() - start < 1.0
    assert first.images.shape == (32460, 1, 28, 28) and torch.equal(first.images, second.images)
    assert torch.equal(first.labels.bincount(), torch.full((1623,), 20))
    assert len(set(first.class_groups)) == 50 and not caplog.records
    ink = first.images.float().mean(dim=(1, 2, 3)) / 255
    assert 0.07 < float(ink.mean()) < 0.09, "strokes are bright and few"
    assert float(ink.min()) > 0
