"""Folders of pictures: layouts, splits, damaged files, and a sentence for each mistake."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.data.checksums import data_checksum
from metalearn.data.folder import list_folder, load_folder
from metalearn.errors import DataError, SettingError
from metalearn.tasks import folder_tasks

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")


def paint(path: Path, shade: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), (shade, 0, 0)).save(path)


def six(root: Path) -> Path:
    """Six classes; class number c holds c + 1 pictures, each of one shade."""
    for number, name in enumerate(CLASSES):
        for index in range(number + 1):
            paint(root / name / f"{index}.png", 10 * number + index)
    return root


# --- what comes out -------------------------------------------------------------------------


def test_classes_and_pictures_are_sorted_by_name(tmp_path: Path) -> None:
    data = load_folder(six(tmp_path), image_size=4)
    assert data.class_names == CLASSES and data.class_groups == ("",) * 6
    assert data.images.shape == (21, 3, 4, 4)
    assert data.labels.bincount().tolist() == [1, 2, 3, 4, 5, 6]
    shades = [10 * c + i for c in range(6) for i in range(c + 1)]
    assert data.images[:, 0, 0, 0].tolist() == shades
    assert int(data.images[:, 1:].max()) == 0


def test_grey_and_inverted(tmp_path: Path) -> None:
    six(tmp_path)
    plain = load_folder(tmp_path, image_size=4, channels=1)
    inverted = load_folder(tmp_path, image_size=4, channels=1, invert=True)
    assert plain.image_shape == (1, 4, 4)
    assert torch.equal(inverted.images, 255 - plain.images)


def test_groups_are_the_folders_above(tmp_path: Path) -> None:
    for name in CLASSES:
        paint(tmp_path / ("birds" if name < "d" else "fish") / name / "0.png")
    data = load_folder(tmp_path)
    assert data.class_names[::3] == ("birds/ant", "fish/dog")
    assert data.class_groups == ("birds",) * 3 + ("fish",) * 3
    assert data.image_shape == (3, 84, 84)


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "bmp", "webp", "gif", "tif", "TIFF"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    paint(six(tmp_path) / "ant" / f"more.{suffix}", 100)
    red = load_folder(tmp_path, image_size=4).images[1, 0]
    assert (red.int() - 100).abs().max() <= 3  # jpeg and webp lose a little


def test_other_files_and_hidden_ones_are_passed_over(tmp_path: Path) -> None:
    six(tmp_path)
    for name in ("notes.txt", "ant/.hidden.png", "ant/Thumbs.db", ".git/0.png", "__MACOSX/0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not a picture")
    assert len(load_folder(tmp_path).images) == 21


def test_loops_are_not_followed_but_links_to_classes_are(tmp_path: Path) -> None:
    six(tmp_path / "here")
    (tmp_path / "here" / "ant" / "loop").symlink_to(tmp_path / "here")
    (tmp_path / "here" / "self").symlink_to(tmp_path / "here")
    paint(tmp_path / "elsewhere" / "0.png", 77)
    (tmp_path / "here" / "gnu").symlink_to(tmp_path / "elsewhere")
    data = load_folder(tmp_path / "here", image_size=4)
    assert data.class_names == (*CLASSES, "gnu")
    assert data.images[-1, 0, 0, 0] == 77


# --- splits ---------------------------------------------------------------------------------


def test_split_is_fixed_and_follows_the_fractions(tmp_path: Path) -> None:
    names = [f"class{number:02d}" for number in range(20)]
    for name in reversed(names):
        paint(tmp_path / name / "0.png")
    splits = load_folder(tmp_path, validation_fraction=0.25, test_fraction=0.15).splits
    assert [len(splits[part]) for part in ("train", "validation", "test")] == [12, 5, 3]
    assert sorted(c for part in splits.values() for c in part) == list(range(20))
    assert splits["test"] == (2, 15, 16)
    paint(tmp_path / "classless" / "0.png")  # one class more moves at most one over each border
    again = load_folder(tmp_path, validation_fraction=0.25, test_fraction=0.15)
    names_again = {again.class_names[c] for c in again.splits["test"]}
    assert len(names_again & {names[c] for c in splits["test"]}) >= 2


@pytest.mark.parametrize("word", ["val", "validation"])
def test_named_folders_are_the_splits(tmp_path: Path, word: str) -> None:
    for split, names in (("train", "cd"), (word, "ae"), ("test", "bf")):
        for name in names:
            paint(tmp_path / split / name / "0.png")
    data = load_folder(tmp_path)
    assert data.class_names == tuple("abcdef")
    assert data.splits == {"train": (2, 3), "validation": (0, 4), "test": (1, 5)}


def test_named_splits_may_hold_groups(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for name in "ab":
            paint(tmp_path / split / f"of_{split}" / name / "0.png")
    data = load_folder(tmp_path)
    assert data.class_names[0] == "of_test/a" and data.class_groups[-1] == "of_val"
    assert data.splits["train"] == (2, 3)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    paint(six(tmp_path) / "train" / "0.png")
    assert "train" in load_folder(tmp_path).class_names


# --- damaged pictures -----------------------------------------------------------------------


def damaged(root: Path) -> Path:
    six(root)
    (root / "eel" / "1.png").write_bytes(b"not a picture")
    whole = (root / "fox" / "0.png").read_bytes()
    (root / "fox" / "0.png").write_bytes(whole[:-30])
    (root / "fox" / "9.jpg").symlink_to(root / "gone.jpg")
    return root


def test_damaged_pictures_are_refused_by_name(tmp_path: Path) -> None:
    sentence = r": 3 files cannot be read as a picture: eel/1.png \(.*fox/0.png \(.*fox/9.jpg \("
    with pytest.raises(DataError, match=sentence + ".*or set on_corrupt=skip to leave it out"):
        load_folder(damaged(tmp_path))


def test_damaged_pictures_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="metalearn.data.folder_reading")
    data = load_folder(damaged(tmp_path), image_size=4, on_corrupt="skip")
    assert data.labels.bincount().tolist() == [1, 2, 3, 4, 4, 5]
    assert data.images[-5:, 0, 0, 0].tolist() == [51, 52, 53, 54, 55]
    (record,) = caplog.records
    assert "3 files cannot be read as a picture and left out: eel/1.png" in record.message


def test_long_lists_are_cut(tmp_path: Path) -> None:
    for index in range(8):
        (six(tmp_path) / "ant" / f"bad{index}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r": 8 files .*ant/bad4.png \([^,]*\) and 3 more; mend"):
        load_folder(tmp_path)


def test_class_of_damaged_pictures_alone_is_refused(tmp_path: Path) -> None:
    (six(tmp_path) / "ant" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match="no picture of the class ant can be read"):
        load_folder(tmp_path, on_corrupt="skip")


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "accepted"),
    [
        ("image_size", 0, "a whole number of at least 1"),
        ("image_size", 8.5, "a whole number of at least 1"),
        ("channels", 2, r"1 \(grey\) or 3 \(colour\)"),
        ("on_corrupt", "ignore", "refuse or skip"),
        ("validation_fraction", -0.1, "a number from 0 to 1"),
        ("test_fraction", 1.5, "a number from 0 to 1"),
        ("test_fraction", 0, "a number above 0"),
        ("test_fraction", 1, "with validation_fraction=0.2 the sum must stay below 1"),
        ("test_fraction", 0.8, "with validation_fraction=0.2 the sum must stay below 1"),
    ],
)
def test_impossible_settings(tmp_path: Path, setting: str, value: object, accepted: str) -> None:
    with pytest.raises(SettingError, match=f"{setting}={value!r}: {accepted}"):
        load_folder(six(tmp_path), **{setting: value})  # type: ignore[arg-type]


def test_root_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"root='.*none': nothing is there; a folder of class"):
        load_folder(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"root='.*file': it is a file; a folder of class fol"):
        load_folder(tmp_path / "file")


def test_no_pictures_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class folders with pictures are there"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("add", "sentence"),
    [
        ("gnu/notes.txt", r"gnu: a class folder without pictures \(png, jpg"),
        ("loose.png", "loose.png lies outside of any class folder"),
        ("ant/inner/0.png", "ant holds both pictures and folders"),
        ("group/gnu/inner/0.png", "inner lies too deep: class/picture or group/class/picture"),
        ("test/0.png", None),
        ("train/0.png", None),
    ],
)
def test_layouts(tmp_path: Path, add: str, sentence: str | None) -> None:
    six(tmp_path)
    (tmp_path / add).parent.mkdir(parents=True, exist_ok=True)
    paint(tmp_path / add) if add.endswith("png") else (tmp_path / add).write_text("")
    if sentence is None:
        assert len(load_folder(tmp_path).class_names) == 7
    else:
        with pytest.raises(DataError, match=sentence):
            load_folder(tmp_path)


@pytest.mark.parametrize(
    ("folders", "sentence"),
    [
        ("train test", "the folder validation is missing beside test, train"),
        ("train", "the folder validation is missing beside train"),
        ("train val", "the folder test is missing beside train, val"),
        ("train val validation test", "val and validation are both there"),
        ("train val test extra", "the folder extra stands beside train and test; only"),
    ],
)
def test_split_folders(tmp_path: Path, folders: str, sentence: str) -> None:
    for split in folders.split():
        for name in ("a", "b"):
            paint(tmp_path / split / (split + name) / "0.png")
    with pytest.raises(DataError, match=sentence):
        load_folder(tmp_path)


def test_class_in_two_splits_is_refused(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            paint(tmp_path / split / name / "0.png")
    with pytest.raises(DataError, match=r"the class a stands in .* splits of few-shot tasks share"):
        load_folder(tmp_path)


def test_too_few_classes(tmp_path: Path) -> None:
    for name in CLASSES[:5]:
        paint(tmp_path / name / "0.png")
    with pytest.raises(DataError, match=r"5 classes leave 1 for train; .* at least 2, 6 classes"):
        load_folder(tmp_path)
    paint(tmp_path / "fox" / "0.png")
    assert {part: len(c) for part, c in load_folder(tmp_path).splits.items()} == {
        "train": 2, "validation": 2, "test": 2,
    }  # fmt: skip


def test_pictures_are_read_as_stored(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    six(tmp_path)
    Image.fromarray(pixels).save(tmp_path / "ant" / "0.png")
    first = load_folder(tmp_path, image_size=8).images[0]
    assert torch.equal(first, torch.from_numpy(pixels).permute(2, 0, 1))


# --- where decoded pictures are ---------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_pack_and_the_files_have_the_same_pictures(tmp_path: Path, cache: Path) -> None:
    root = six(tmp_path / "here")
    for how in ({}, {"channels": 1, "invert": True, "image_size": 5}):
        plain = load_folder(root, **how)  # type: ignore[arg-type]
        first, again = (load_folder(root, keep="cache", **how) for _ in range(2))  # type: ignore[arg-type]
        files = list_folder(root, **how)  # type: ignore[arg-type]
        for other in (first, again, files):
            assert torch.equal(other.images[:], plain.images)
            assert torch.equal(other.labels, plain.labels) and other.splits == plain.splits
            assert other.image_shape == plain.image_shape
        some = torch.tensor([[3, 0], [3, 20]])
        assert torch.equal(files.images[some], plain.images[some])
    assert len(list(cache.iterdir())) == 2


def test_a_pack_is_made_anew_where_files_change(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="metalearn")
    root = six(tmp_path / "here")
    for _ in range(2):
        load_folder(root, image_size=4, keep="cache")
    assert caplog.text.count("is decoded once to") == 1
    (root / "ant" / "0.png").unlink()
    paint(root / "ant" / "0.png", 255)
    changed = load_folder(root, image_size=4, keep="cache")
    assert int(changed.images[0, 0, 0, 0]) == 255 and len(list(cache.iterdir())) == 1
    (pack,) = cache.iterdir()
    content = pack.read_bytes()
    for damage in (content[:-9], content[: len(content) // 2], b"", bytes(len(content))):
        pack.unlink()  # what is mapped stays as it was
        pack.write_bytes(damage)
        again = load_folder(root, image_size=4, keep="cache")
        assert torch.equal(again.images, changed.images) and pack.read_bytes() == content


def test_what_a_pack_lacks_is_said_each_time(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = damaged(tmp_path / "here")
    plain = load_folder(root, image_size=4, on_corrupt="skip")
    for _ in range(2):
        caplog.clear()
        found = load_folder(root, image_size=4, on_corrupt="skip", keep="cache")
        assert torch.equal(found.images, plain.images) and torch.equal(found.labels, plain.labels)
        assert "could not be read and are left out" in caplog.text
    with pytest.raises(DataError, match="cannot be read as a picture"):
        load_folder(root, image_size=4, keep="cache")


def test_a_file_that_is_no_picture_is_refused_when_it_is_taken(tmp_path: Path) -> None:
    data = list_folder(damaged(tmp_path), image_size=4)
    with pytest.raises(DataError, match=r"cannot be read as a picture \("):
        data.images[:]
    with pytest.raises(SettingError, match="on_corrupt='skip': refuse is needed with keep=nothing"):
        folder_tasks(tmp_path, on_corrupt="skip", keep="nothing")
    with pytest.raises(SettingError, match="keep="):
        folder_tasks(tmp_path, keep="disk")  # type: ignore[arg-type]


def test_files_tell_by_names_and_sizes_whether_they_are_the_same(tmp_path: Path) -> None:
    root = six(tmp_path / "here")
    one, same = (data_checksum(list_folder(root, image_size=4)) for _ in range(2))
    assert one == same != data_checksum(list_folder(root, image_size=5))
    with (root / "ant" / "0.png").open("ab") as file:
        file.write(b"x")
    assert one != data_checksum(list_folder(root, image_size=4))
