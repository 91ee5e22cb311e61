"""The sources: each hands its own settings to its data set and the rest to the episodes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metalearn import data
from metalearn.data import LabelledImages
from metalearn.errors import DataError, SettingError
from metalearn.tasks import (
    FewShotTasks,
    cifar_fs_tasks,
    cub_tasks,
    fc100_tasks,
    folder_tasks,
    glyph_tasks,
    mini_imagenet_tasks,
    omniglot_tasks,
    published_sets,
    sources,
    tiered_imagenet_tasks,
)
from tests.support.builders import labelled

LOADERS = {
    "load_glyphs": sources,
    "load_omniglot": sources,
    "load_folder": sources,
    "load_cifar_fs": published_sets,
    "load_fc100": published_sets,
    "load_mini_imagenet": published_sets,
    "load_tiered_imagenet": published_sets,
    "load_cub": published_sets,
}
"""Name of a loader to the module that calls it."""

SPLIT_NAMES: tuple[Any, ...] = ("train", "validation", "test")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the loaders were called with; they give tiny pictures instead of a data set."""
    made: list[dict[str, Any]] = []

    def replace(name: str) -> None:
        signature = inspect.signature(getattr(data, name))

        def load(*args: Any, **kwargs: Any) -> LabelledImages:
            made.append(dict(signature.bind(*args, **kwargs).arguments))
            return labelled()

        monkeypatch.setattr(LOADERS[name], name, load)

    for name in LOADERS:
        replace(name)
    return made


EPISODES = {"way": 3, "shot": 2, "query": 3, "rotate_train": True, "seed": 4}


@pytest.mark.parametrize(
    ("source", "settings", "expected"),
    [
        (glyph_tasks, {"image_size": 20}, {"image_size": 20}),
        (
            omniglot_tasks,
            {"root": "a/b", "split": "small1", "validation_groups": 3,
             "image_size": 20, "download": False},
            {"root": "a/b", "split": "small1", "validation_groups": 3,
             "image_size": 20, "download": False},
        ),
        (
            cifar_fs_tasks,
            {"root": "a", "image_size": 20, "download": False},
            {"root": "a", "image_size": 20, "download": False},
        ),
        (
            fc100_tasks,
            {"root": "a", "image_size": 20, "download": False},
            {"root": "a", "image_size": 20, "download": False},
        ),
        (
            cub_tasks,
            {"root": "a", "image_size": 20, "download": False},
            {"root": "a", "image_size": 20, "download": False},
        ),
        (
            mini_imagenet_tasks,
            {"root": "a", "image_size": 20},
            {"root": "a", "image_size": 20},
        ),
        (
            tiered_imagenet_tasks,
            {"root": "a", "image_size": 20},
            {"root": "a", "image_size": 20},
        ),
        (
            folder_tasks,
            {"root": "a", "image_size": 9, "channels": 1, "invert": True, "on_corrupt": "skip",
             "validation_fraction": 0.3, "test_fraction": 0.1, "keep": "cache"},
            {"root": "a", "image_size": 9, "channels": 1, "invert": True, "on_corrupt": "skip",
             "validation_fraction": 0.3, "test_fraction": 0.1, "keep": "cache"},
        ),
    ],
)  # fmt: skip
def test_settings_reach_the_data_and_the_episodes(
    source: Any, settings: dict[str, Any], expected: dict[str, Any], calls: list[dict[str, Any]]
) -> None:
    tasks = source(**settings, **EPISODES)
    assert calls == [expected]
    assert isinstance(tasks, FewShotTasks)
    assert (tasks.way, tasks.shot, tasks.query, tasks.seed) == (3, 2, 3, 4)
    assert any("turned" in n for i in range(9) for n in tasks.class_names("train", i))


@pytest.mark.parametrize(
    ("source", "size"),
    [
        (glyph_tasks, 28),
        (omniglot_tasks, 28),
        (cifar_fs_tasks, 32),
        (fc100_tasks, 32),
        (mini_imagenet_tasks, 84),
        (tiered_imagenet_tasks, 84),
        (cub_tasks, 84),
    ],
)
def test_defaults_are_those_of_the_episodes(
    source: Any, size: int, calls: list[dict[str, Any]]
) -> None:
    tasks = source(way=2)
    assert (tasks.shot, tasks.query, tasks.seed) == (1, 1, 0)
    assert calls[0]["image_size"] == size


def test_bad_episodes_are_refused(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(SettingError, match="way=1: a whole number of at least 2 is needed"):
        glyph_tasks(way=1)
    with pytest.raises(TypeError, match="wya"):
        glyph_tasks(wya=5)


def _draw(root: Path) -> None:
    random = np.random.default_rng(0)
    for c in range(6):
        for n in range(4):
            path = root / f"class{c}" / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (6, 6), dtype=np.uint8)).save(path)


def test_tasks_from_a_folder_of_pictures(tmp_path: Path) -> None:
    _draw(tmp_path)
    tasks = folder_tasks(tmp_path, image_size=6, channels=1, way=2, shot=1, query=3)
    assert tasks.input_shape == (1, 6, 6)
    again = folder_tasks(str(tmp_path), image_size=6, channels=1, way=2, shot=1, query=3)
    names = {s: {n for i in range(30) for n in tasks.class_names(s, i)} for s in SPLIT_NAMES}
    assert [len(names[s]) for s in SPLIT_NAMES] == [2, 2, 2]
    assert len(set().union(*names.values())) == 6
    for split in SPLIT_NAMES:
        one, other = tasks.sample(split, [3]), again.sample(split, [3])
        assert one.query[0].shape == (1, 6, 1, 6, 6)
        assert one.query[0].equal(other.query[0])


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises((DataError, SettingError), match="nowhere"):
        folder_tasks(tmp_path / "nowhere", way=2)
