"""mini-ImageNet and tiered-ImageNet in the layouts that people have, with few tiny pictures."""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from metalearn.data import LabelledImages, load_mini_imagenet, load_tiered_imagenet
from metalearn.data.imagenet_classes import MINI_IMAGENET, TIERED_GROUPS, TIERED_IMAGENET
from metalearn.errors import DataError, SettingError
from tests.support.picture_sets import small_picture, write_lists, write_tree

CLASSES = sorted(name for names in MINI_IMAGENET.values() for name in names)
FIRST, LAST = CLASSES[0], CLASSES[-1]


def lists(root: Path) -> Path:
    return write_lists(root, MINI_IMAGENET)


def lists_by_class(root: Path) -> Path:
    return write_lists(root, MINI_IMAGENET, by_class=True)


def tree(root: Path) -> Path:
    return write_tree(root, MINI_IMAGENET)


def undivided(root: Path) -> Path:
    return write_tree(root, MINI_IMAGENET, divided=False)


def images_folder(root: Path) -> Path:
    write_tree(root / "images", MINI_IMAGENET, divided=False)
    return root


LAYOUTS = [lists, lists_by_class, tree, undivided, images_folder]


def load(root: Path, **settings: object) -> LabelledImages:
    """With the array beside the pictures' folder."""
    cache = root.parent / "cache"
    return load_mini_imagenet(root, image_size=4, cache=cache, **settings)  # type: ignore[arg-type]


def assert_whole(data: LabelledImages) -> None:
    assert data.images.dtype == torch.uint8 and data.images.shape == (200, 3, 4, 4)
    assert data.class_names == tuple(CLASSES)
    assert data.labels.tolist() == [c for c in range(100) for _ in range(2)]
    assert torch.equal(data.images[:, 0, 1, 2].long(), data.labels)
    assert (data.images[:, 1] == 0).all() and (data.images[:, 2] == 200).all()
    found = {s: tuple(data.class_names[c] for c in chosen) for s, chosen in data.splits.items()}
    assert found == MINI_IMAGENET


@pytest.mark.parametrize("write", LAYOUTS)
def test_every_layout_gives_the_same_set(write: Callable[[Path], Path], tmp_path: Path) -> None:
    assert_whole(load(write(tmp_path / "set")))


def test_the_array_is_made_once_and_mapped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="metalearn")
    root = lists(tmp_path / "set")
    assert_whole(load(root))
    made = sorted((tmp_path / "cache").iterdir())
    assert [path.suffix for path in made] == [".json", ".npy"]
    before = made[1].read_bytes()
    data = load(root)
    assert caplog.text.count("is converted once") == 1
    data.images[0] = 7
    assert made[1].read_bytes() == before, "what is written to the array is written nowhere"
    assert np.load(made[1], allow_pickle=False).shape == (200, 3, 4, 4)
    header = json.loads(made[0].read_text())
    assert header["names"] == CLASSES and header["counts"] == [2] * 100
    assert len(header["pictures"]) == len(header["source"]) == 64


def test_other_files_or_another_size_are_converted_anew(tmp_path: Path) -> None:
    root = lists(tmp_path / "set")
    assert_whole(load(root))
    (root / "images" / f"{FIRST}_0.png").write_bytes(small_picture(77, size=9))
    assert load(root).images[0, 0].unique().tolist() == [77]
    other = load_mini_imagenet(root, image_size=5, cache=tmp_path / "cache")
    assert other.image_shape == (3, 5, 5)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 3


DAMAGES = ["cut", "empty", "header", "gone", "version", "text", "splits", "pixels", "foreign"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_array_is_made_again(damage: str, tmp_path: Path) -> None:
    root = lists(tmp_path / "set")
    load(root)
    header, array = sorted((tmp_path / "cache").iterdir())
    if damage == "cut":
        array.write_bytes(array.read_bytes()[:-5])
    elif damage == "empty":
        array.write_bytes(b"")
    elif damage == "header":
        array.write_bytes(b"nothing")
    elif damage == "gone":
        header.unlink()
    elif damage == "text":
        header.write_text("{")
    elif damage == "pixels":
        content = array.read_bytes()
        array.write_bytes(content[:-9] + bytes([content[-9] ^ 255]) + content[-8:])
    else:
        values = json.loads(header.read_text())
        changed = {
            "version": {"version": 0}, "splits": {"splits": {"train": [500]}},
            "foreign": {"source": "0" * 64},
        }  # fmt: skip
        header.write_text(json.dumps(values | changed[damage]))
    assert_whole(load(root))


def test_a_machine_without_room_converts_nothing_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="metalearn")
    root = lists(tmp_path / "set")
    load(root)

    def refused(*given: object, **named: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refused)
    with pytest.raises(DataError, match=r"cannot be mapped into memory .*: it is not damaged"):
        load(root)
    assert caplog.text.count("is converted once") == 1 and "damaged" not in caplog.text


def test_an_array_that_was_copied_and_a_header_of_before_are_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="metalearn")
    root = lists(tmp_path / "set")
    load(root)
    header, array = sorted((tmp_path / "cache").iterdir())
    os.utime(array, ns=(1, 1))
    assert_whole(load(root))
    assert_whole(load(root))
    assert caplog.text.count("is converted once") == caplog.text.count("it is read once") == 1
    values = json.loads(header.read_text())
    for name in ("array", "bytes", "time"):
        del values[name]
    header.write_text(json.dumps(values))
    assert_whole(load(root))
    assert caplog.text.count("is converted once") == 1


def test_the_array_stands_in_for_pictures_that_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"mini-ImageNet is not in .*mini_imagenet, and nobody may"):
        load_mini_imagenet(image_size=4)
    root = lists(tmp_path / "data" / "mini-imagenet")
    assert_whole(load_mini_imagenet(image_size=4))
    root.rename(tmp_path / "elsewhere")
    assert_whole(load_mini_imagenet(image_size=4))
    with pytest.raises(DataError, match="mini-ImageNet is not in"):
        load_mini_imagenet(image_size=5)


def test_a_root_without_pictures_is_a_setting(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SettingError, match=r"root='.*': a folder with mini-ImageNet is needed"):
            load(root)
    with pytest.raises(SettingError, match=r"image_size=0"):
        load_mini_imagenet(tmp_path, image_size=0)


# --- other sets, and damaged ones ----------------------------------------------------------------


def test_an_upload_that_divides_pictures_is_told_apart(tmp_path: Path) -> None:
    every = {split: tuple(CLASSES) for split in MINI_IMAGENET}
    root = tmp_path / "set"
    for split in every:
        write_tree(root / split, MINI_IMAGENET, divided=False)
    with pytest.raises(DataError) as error:
        load(root)
    assert (
        f"the class {FIRST} stands in train and in validation and in test: this upload divides the "
        "pictures of each class, as the Hub's timm/mini-imagenet does; few-shot tasks need "
        "mini-ImageNet with its classes divided"
    ) in str(error.value)


def test_another_division_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path / "set")
    (root / "train" / FIRST).rename(root / "test" / FIRST)
    sentence = f"the class {FIRST} stands in test; mini-ImageNet has it in train"
    with pytest.raises(DataError, match=sentence):
        load(root)


@pytest.mark.parametrize("write", [tree, undivided])
def test_other_classes_are_named(write: Callable[[Path], Path], tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    folder = next(root.rglob(LAST))
    folder.rename(folder.with_name("n99999999"))
    with pytest.raises(DataError, match=r"n99999999 is no class of mini-ImageNet \(99 of its 100 "):
        load(root)
    for file in (folder.with_name("n99999999")).iterdir():
        file.unlink()
    folder.with_name("n99999999").rmdir()
    with pytest.raises(DataError, match=rf"the class {LAST} of mini-ImageNet is missing \(99 of"):
        load(root)


def test_an_unreadable_picture_is_named(tmp_path: Path) -> None:
    root = lists(tmp_path / "set")
    (root / "images" / f"{LAST}_1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=rf"set: {LAST}_1\.png cannot be read as a picture \(no re"):
        load(root)
    assert not list((tmp_path / "cache").iterdir()), "nothing half made is left"


def test_pickles_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "mini-imagenet-cache-train.pkl").write_bytes(b"")
    with pytest.raises(
        DataError, match="mini-imagenet-cache-train.pkl is a pickle, which could ru"
    ):
        load(tmp_path)


def _no_header(text: str) -> str:
    return text.partition("\n")[2]


def _short_line(text: str) -> str:
    return text + "alone\n"


def _missing(text: str) -> str:
    return text + f"other.png,{FIRST}\n"


def _endless(text: str) -> str:
    return text + "x" * 200_000 + f",{FIRST}\n"


def _outside(text: str) -> str:
    return text + f"../../x.png,{FIRST}\n"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_no_header, r"train\.csv: its first line needs the columns filename and label, not n"),
        (_short_line, r"train\.csv: line 130 has no 2 columns"),
        (_missing, rf"the listed picture other\.png of {FIRST} is neither in images nor beside"),
        (_endless, r"train\.csv cannot be read: field larger than field limit"),
        (_outside, r"\.\./\.\./x\.png would lie outside of the folder"),
    ],
)
def test_faulty_lists_are_named(
    change: Callable[[str], str], sentence: str, tmp_path: Path
) -> None:
    path = lists(tmp_path / "set") / "train.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=sentence):
        load(path.parent)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    root = lists(tmp_path / "set")
    (root / "val.csv").unlink()
    with pytest.raises(DataError, match=re.escape("val.csv is missing beside train.csv")):
        load(root)


def test_lists_with_other_names_of_columns_and_lists(tmp_path: Path) -> None:
    root = lists(tmp_path / "set")
    (root / "val.csv").rename(root / "validation.csv")
    text = (root / "test.csv").read_text()
    (root / "test.csv").write_text(
        "\ufeff" + text.replace("filename,label", "Filename,class") + "\n"
    )
    assert_whole(load(root))


# --- tiered-ImageNet -----------------------------------------------------------------------------


@pytest.mark.parametrize("divided", [True, False])
def test_tiered_imagenet_has_categories(divided: bool, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "set", TIERED_IMAGENET, divided=divided, each=1)
    if not divided:  # as ImageNet's own folder, which has other classes too
        write_tree(root, {"train": ("n00000001", "n99999999")}, divided=False, each=1)
    data = load_tiered_imagenet(root, image_size=4, cache=tmp_path / "cache")
    assert data.images.shape == (608, 3, 4, 4) and len(data.class_names) == 608
    assert data.class_groups == tuple(TIERED_GROUPS[name] for name in data.class_names)
    assert len(set(data.class_groups)) == 34
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [351, 97, 160]
    assert data.images[:, 0, 0, 0].tolist() == [n % 256 for n in range(608)]
    groups = {s: {data.class_groups[c] for c in chosen} for s, chosen in data.splits.items()}
    assert [len(groups[s]) for s in ("train", "validation", "test")] == [20, 6, 8]
