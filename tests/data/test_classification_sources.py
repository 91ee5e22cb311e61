"""Classification from letters, Omniglot and folders: classes chosen, pictures divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.data import LabelledImages, classification_sources, folder_data
from metalearn.data.classification_sources import glyphs_data, omniglot_data
from metalearn.errors import DataError, SettingError
from tests.data.test_classification import SPLITS, assert_stratified
from tests.support.builders import labelled

# --- letters and Omniglot -------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the loaders were called with; they give 20 pictures of 16 classes, interleaved."""
    made: list[tuple[Any, ...]] = []

    def load(*args: Any, **kwargs: Any) -> LabelledImages:
        made.append((*args, kwargs))
        return labelled((20,) * 16)

    monkeypatch.setattr(classification_sources, "load_glyphs", load)
    monkeypatch.setattr(classification_sources, "load_omniglot", load)
    return made


@pytest.mark.parametrize("source", [glyphs_data, omniglot_data])
def test_pictures_of_every_class_are_divided(source: Any, calls: list[Any]) -> None:
    data, whole = source(validation_fraction=0.1, test_fraction=0.3), labelled((20,) * 16)
    assert torch.equal(data.inputs, whole.images) and torch.equal(data.targets, whole.labels)
    assert data.class_names == whole.class_names
    assert_stratified(data, (0.6, 0.1, 0.3))
    again, other = source(seed=0), source(seed=1)
    assert torch.equal(source().splits["test"], again.splits["test"])
    assert not torch.equal(again.splits["test"], other.splits["test"])


@pytest.mark.parametrize("source", [glyphs_data, omniglot_data])
def test_the_first_classes_can_be_chosen(source: Any, calls: list[Any]) -> None:
    data, whole = source(classes=3), labelled((20,) * 16)
    assert data.outputs == 3 and data.class_names == whole.class_names[:3]
    assert torch.equal(data.inputs, whole.images[whole.labels < 3])
    assert_stratified(data, (0.6, 0.2, 0.2))
    for classes, message in (
        (17, "the data have 16 classes, so at most as many"),
        (1, "at least 2"),
    ):
        with pytest.raises(SettingError, match=f"classes={classes}: .*{message}"):
            source(classes=classes)


def test_settings_reach_the_loaders(calls: list[Any]) -> None:
    glyphs_data(image_size=20, renderings=5)
    omniglot_data(root="a/b", image_size=9, download=False)
    assert calls == [
        ({"image_size": 20, "renderings": 5},),
        ("a/b", {"image_size": 9, "download": False}),
    ]
    with pytest.raises(SettingError, match="validation_fraction=2: a number between 0 and 1"):
        glyphs_data(validation_fraction=2)
    assert len(calls) == 2, "bad fractions are told before anything is loaded"


# --- folders --------------------------------------------------------------------------------


def paint(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 6), shade, np.uint8)).save(path)


def test_pictures_of_class_folders_are_divided(tmp_path: Path) -> None:
    for c, name in enumerate(("ant", "bee", "cat")):
        for n in range(10):
            paint(tmp_path / name / f"{n}.png", 80 * c + n)
    data = folder_data(tmp_path, image_size=4, channels=1, test_fraction=0.3)
    assert data.class_names == ("ant", "bee", "cat") and data.input_shape == (1, 4, 4)
    assert data.inputs[:, 0, 0, 0].tolist() == [80 * c + n for c in range(3) for n in range(10)]
    assert_stratified(data, (0.5, 0.2, 0.3))
    inverted = folder_data(str(tmp_path), image_size=4, channels=1, test_fraction=0.3, invert=True)
    assert torch.equal(inverted.inputs, 255 - data.inputs)
    assert torch.equal(inverted.splits["test"], data.splits["test"])
    assert folder_data(tmp_path, image_size=4).input_shape == (3, 4, 4)


@pytest.mark.parametrize("word", ["val", "validation"])
def test_named_folders_are_the_splits(tmp_path: Path, word: str) -> None:
    for s, (split, count) in enumerate((("train", 4), (word, 1), ("test", 2))):
        for c, name in enumerate(("b", "a")):
            for n in range(count):
                paint(tmp_path / split / name / f"{n}.png", 100 * c + 10 * s + n)
    data = folder_data(tmp_path, image_size=4, channels=1)
    assert data.class_names == ("a", "b")
    shades = {s: (data.part(s)[0][:, 0, 0, 0] * 255).round().tolist() for s in SPLITS}
    assert shades == {
        "train": [100, 101, 102, 103, 0, 1, 2, 3],
        "validation": [110, 10],
        "test": [120, 121, 20, 21],
    }
    assert data.part("test")[1].tolist() == [0, 0, 1, 1]


def test_damaged_pictures_are_refused_or_left_out(tmp_path: Path) -> None:
    for name in "ab":
        for n in range(5):
            paint(tmp_path / name / f"{n}.png", n)
    (tmp_path / "a" / "2.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"1 file cannot be read as a picture: a/2.png \("):
        folder_data(tmp_path)
    data = folder_data(tmp_path, on_corrupt="skip")
    assert data.targets.bincount().tolist() == [4, 5]


def test_folders_that_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="root=.*nowhere': nothing is there; a folder of class"):
        folder_data(tmp_path / "nowhere")
    with pytest.raises(SettingError, match="channels=2: "):
        folder_data(tmp_path, channels=2)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="test_fraction=0: a number between 0 and 1"):
        folder_data(tmp_path, test_fraction=0)
    with pytest.raises(DataError, match="no class folders with pictures are there"):
        folder_data(tmp_path)
    paint(tmp_path / "a" / "0.png", 0)
    with pytest.raises(DataError, match="a is the only class; at least two are needed"):
        folder_data(tmp_path)
    paint(tmp_path / "b" / "0.png", 0)
    with pytest.raises(DataError, match="the class a has 1 samples, too few"):
        folder_data(tmp_path)


def test_a_class_that_training_lacks_is_named(tmp_path: Path) -> None:
    for place in ("train/a", "train/b", "validation/a", "test/a", "test/c"):
        paint(tmp_path / place / "0.png", 0)
    with pytest.raises(DataError, match="the class c stands in test but not in train"):
        folder_data(tmp_path)
