"""mini-ImageNet in Parquet files, as the Hub has them; with pyarrow, the extra `parquet`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.data import LabelledImages, load_mini_imagenet
from metalearn.data.imagenet_classes import MINI_IMAGENET
from metalearn.errors import DataError
from tests.support.picture_sets import class_pictures

CLASSES = sorted(name for names in MINI_IMAGENET.values() for name in names)
SPLITS = ("train", "validation", "test")
Row = tuple[str, str, str, bytes]


def load(root: Path) -> LabelledImages:
    return load_mini_imagenet(root, image_size=4, cache=root.parent / "cache")


def write(
    path: Path, rows: Sequence[Row], labels: list[Any], *, names: bool = False, nested: bool = True
) -> None:
    """One file; pictures in a structure of bytes and path, as the Hub has them, or bare."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images: list[Any] = [row[3] for row in rows]
    if nested:
        images = [{"bytes": data, "path": None} for data in images]
    table = pa.table({"image": images, "label": labels})
    if names:
        features = {"label": {"names": CLASSES, "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def of_split(split: str) -> list[Row]:
    return [row for row in class_pictures(MINI_IMAGENET) if row[0] == split]


def write_all(root: Path, labels: str = "named numbers", pattern: str = "data/{}-{}") -> Path:
    """Two parts of each split."""
    for split in SPLITS:
        rows = of_split(split)
        own = sorted({row[1] for row in rows})
        for part, chosen in enumerate((rows[:40], rows[40:])) if split == "train" else [(0, rows)]:
            count = 2 if split == "train" else 1
            path = root / (pattern.format(split, f"{part:05d}-of-{count:05d}") + ".parquet")
            values: list[Any] = {
                "named numbers": [CLASSES.index(row[1]) for row in chosen],
                "texts": [row[1] for row in chosen],
                "numbers": [CLASSES.index(row[1]) for row in chosen],
                "numbers anew": [own.index(row[1]) for row in chosen],
            }[labels]
            named = labels == "named numbers"
            write(path, chosen, values, names=named, nested=labels != "texts")
    return root


@pytest.mark.parametrize("labels", ["named numbers", "texts"])
@pytest.mark.parametrize("pattern", ["data/{}-{}", "{}-{}", "{}/{}"])
def test_classes_by_name(labels: str, pattern: str, tmp_path: Path) -> None:
    data = load(write_all(tmp_path / "set", labels, pattern))
    assert data.class_names == tuple(CLASSES)
    assert data.images.shape == (200, 3, 4, 4)
    assert torch.equal(data.images[:, 0, 0, 0].long(), data.labels)
    found = {s: tuple(data.class_names[c] for c in chosen) for s, chosen in data.splits.items()}
    assert found == MINI_IMAGENET


@pytest.mark.parametrize("labels", ["numbers", "numbers anew"])
def test_numbers_without_names_are_classes_of_their_split(labels: str, tmp_path: Path) -> None:
    data = load(write_all(tmp_path / "set", labels))
    assert [len(data.splits[split]) for split in SPLITS] == [64, 16, 20]
    for split in SPLITS:
        pictures = torch.isin(data.labels, torch.tensor(data.splits[split]))
        shades = sorted({CLASSES.index(name) for name in MINI_IMAGENET[split]})
        assert data.images[pictures][::2, 0, 0, 0].tolist() == shades
        assert all(data.class_names[c].startswith(f"{split}/") for c in data.splits[split])


@pytest.mark.parametrize("names", [True, False])
def test_an_upload_that_divides_pictures_is_told_apart(names: bool, tmp_path: Path) -> None:
    rows = list(class_pictures(MINI_IMAGENET, each=1))
    for split in SPLITS:
        labels = [CLASSES.index(row[1]) for row in rows]
        write(tmp_path / "set" / f"{split}.parquet", rows, labels, names=names)
    sentence = "timm/mini-imagenet.*" + ("its classes divided" if names else "do not divide")
    with pytest.raises(DataError, match=sentence):
        load(tmp_path / "set")


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    root = write_all(tmp_path / "set")
    (root / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="train-00001-of-00002.parquet is missing, one of 2 parts"):
        load(root)


def test_faulty_files_are_named(tmp_path: Path) -> None:
    root = write_all(tmp_path / "set")
    path = root / "data" / "test-00000-of-00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet cannot be read: "):
        load(root)
    rows = of_split("test")
    write(path, rows, [500 for _ in rows], names=True)
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet: 500 is no label"):
        load(root)
    write(path, [(*row[:3], None) for row in rows], [CLASSES.index(r[1]) for r in rows], names=True)  # type: ignore[misc]
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet: picture \d+ has no bytes"):
        load(root)
    path.rename(path.with_name("rest.parquet"))
    with pytest.raises(DataError, match=r"rest\.parquet: train, validation or test is needed at"):
        load(root)


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"pip install torch-metalearn\[parquet\]"):
        load(tmp_path)
