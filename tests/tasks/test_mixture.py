"""Mixtures of sets: a set by weight, then its own task; what cannot stand in one batch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.data import LabelledTexts
from metalearn.data.feature_table import FeatureTable
from metalearn.errors import SettingError
from metalearn.tasks import FewShotTasks, MixtureTasks, SinusoidTasks, mixture_tasks
from metalearn.types import Split, TaskBatch, TaskDistribution
from tests.support.builders import labelled

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
TABLE = FeatureTable(torch.zeros(1, 8, 3), torch.nn.Identity())
SIZES: dict[str, Any] = {"way": 3, "shot": 2, "query": 1}


def sets(**changes: Any) -> dict[str, TaskDistribution]:
    """Two sets of the same pictures with tasks of their own, and one with quarter turns."""
    given = SIZES | changes
    return {
        "a": FewShotTasks(labelled(), seed=0, **given),
        "b": FewShotTasks(labelled(), seed=1, **given),
        "c": FewShotTasks(labelled(), seed=2, rotate_train=True, **given),
    }


def assert_equal(one: TaskBatch, other: TaskBatch) -> None:
    for found, wanted in zip((*one.support, *one.query), (*other.support, *other.query)):
        assert torch.equal(found, wanted)


def test_it_is_a_distribution_of_tasks() -> None:
    tasks = MixtureTasks(sets())
    assert isinstance(tasks, TaskDistribution)
    assert tasks.kind == "classification" and tasks.outputs == 3
    assert tasks.outputs_by_split == dict.fromkeys(SPLITS, 3)
    assert tasks.input_shape == labelled().image_shape


@pytest.mark.parametrize("split", SPLITS)
def test_every_task_is_the_one_of_its_set(split: Split) -> None:
    sources = sets()
    tasks = MixtureTasks(sources, seed=4)
    names = tasks.set_names(split, range(20))
    assert set(names) == {"a", "b", "c"}
    batch = tasks.sample(split, range(20))
    assert batch.class_ids is not None
    for index, name in enumerate(names):
        alone = sources[name].sample(split, [index])
        (x, y), (qx, qy) = batch.support, batch.query
        here = (slice(index, index + 1),)
        assert_equal(TaskBatch((x[here], y[here]), (qx[here], qy[here])), alone)
        assert alone.class_ids is not None
        shift = list(sources).index(name) * 2**32
        assert torch.equal(batch.class_ids[index], alone.class_ids[0] + shift)
        inside = tuple(n.partition("/")[2] for n in tasks.class_names(split, index))
        assert inside == sources[name].class_names(split, index)  # type: ignore[attr-defined]


def test_the_address_is_all_that_counts() -> None:
    tasks = MixtureTasks(sets(), weights=[1, 2, 3])
    one, other = tasks.sample("train", [5, 3, 9]), tasks.sample("train", [3])
    assert torch.equal(one.support[0][1], other.support[0][0])
    again = MixtureTasks(sets(), weights=[1, 2, 3])
    assert_equal(one, again.sample("train", [5, 3, 9]))


def test_sets_come_by_weight() -> None:
    drawn = MixtureTasks(sets(), weights=[1, 0, 3]).set_names("train", range(4000))
    shares = [drawn.count(name) / 4000 for name in "abc"]
    assert shares[1] == 0
    assert abs(shares[0] - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    equal = MixtureTasks(sets()).set_names("train", range(4000))
    assert all(abs(equal.count(name) / 4000 - 1 / 3) < 0.03 for name in "abc")


def test_splits_and_seeds_draw_sets_of_their_own() -> None:
    drawn = {s: MixtureTasks(sets()).set_names(s, range(60)) for s in SPLITS}
    assert len(set(drawn.values())) == 3
    other = MixtureTasks(sets(), eval_seed=7)
    assert other.set_names("train", range(60)) == drawn["train"]
    assert other.set_names("test", range(60)) != drawn["test"]
    assert MixtureTasks(sets(), seed=7).set_names("test", range(60)) == other.set_names(
        "test", range(60)
    )


def texts(vocabulary: int) -> FewShotTasks:
    """Tasks of texts of four classes, two a split."""
    tokens = torch.tensor([[1, 2], [3, 0], [2, 2], [1, 1]] * 2).int()
    labels, names = torch.arange(4).repeat(2), tuple("abcd")
    splits = {"train": (0, 1), "test": (2, 3)}
    data = LabelledTexts(tokens, vocabulary, labels, names, ("",) * 4, splits)
    return FewShotTasks(data, way=2, shot=1, query=1)


def test_sets_of_texts_have_their_vocabulary_in_common() -> None:
    tasks = MixtureTasks({"a": texts(5), "b": texts(5)})
    assert tasks.vocabulary == 5 and tasks.sample("test", [0]).support[0].dtype == torch.int64
    assert MixtureTasks(sets()).vocabulary is None
    features = {n: t.with_features(TABLE) for n, t in (("a", texts(5)), ("b", texts(5)))}
    assert tasks.with_sets(features).vocabulary is None
    with pytest.raises(SettingError, match=r"sets\.b='vocabulary 6': .*; a has vocabulary 5"):
        MixtureTasks({"a": texts(5), "b": texts(6)})


def test_sets_of_regression_have_no_class_ids() -> None:
    waves = {"a": SinusoidTasks(seed=0), "b": SinusoidTasks(seed=1)}
    tasks = MixtureTasks(waves)
    assert tasks.kind == "regression"
    assert tasks.sample("test", range(8)).class_ids is None
    with pytest.raises(SettingError, match="sets='.': a set whose tasks have class_names"):
        tasks.class_names("test", 0)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (SinusoidTasks(), "sets.other='kind regression': .*; a has kind classification"),
        (FewShotTasks(labelled(), way=2, shot=2), r"sets.other=.outputs .*: 2.*a has outputs"),
        (
            FewShotTasks(labelled(), **SIZES | {"shot": 1}),
            r"sets.other='train support sets \(\(3, ",
        ),
        (FewShotTasks(labelled(), **SIZES | {"query": {"train": 1, "test": 2}}), "validation quer"),
        (FewShotTasks(labelled(shape=(1, 5, 5)), **SIZES), r"sets.other='inputs .*; a has inputs"),
    ],
)
def test_sets_of_other_shapes_are_refused(other: TaskDistribution, sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        MixtureTasks(sets() | {"other": other})


@pytest.mark.parametrize(
    "weights", [[1, 1], [1, 1, -1], [0, 0, 0], [1, 1, math.nan], [1, 1, math.inf], [1, 1, True]]
)
def test_weights_that_are_none(weights: list[Any]) -> None:
    with pytest.raises(
        SettingError, match=r"weights=.*(one number of at least 0 for|a list of numbers)"
    ):
        MixtureTasks(sets(), weights=weights)


def test_other_bad_input() -> None:
    with pytest.raises(SettingError, match="at least one set is needed"):
        MixtureTasks({})
    tasks = MixtureTasks(sets())
    with pytest.raises(SettingError, match="at least one task index is needed"):
        tasks.sample("train", [])
    with pytest.raises(SettingError, match="split='all'"):
        tasks.sample("all", [0])  # type: ignore[arg-type]


# --- by name -------------------------------------------------------------------------------------


def folder(root: Path, size: int = 6) -> Path:
    random = np.random.default_rng(0)
    for c in range(6):
        for n in range(4):
            path = root / f"class{c}" / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (size, size), dtype=np.uint8)).save(path)
    return root


def test_sets_by_name_with_settings_of_their_own(tmp_path: Path) -> None:
    root = str(folder(tmp_path))
    own = {"source": "folder", "root": root, "channels": 1}
    chosen = {"one": own, "other": own | {"invert": True, "seed": 3}}
    tasks = mixture_tasks(chosen, image_size=6, way=2, query=2, seed=5, weights=[2, 1])
    assert list(tasks.sets) == ["one", "other"] and tasks.seed == 5
    assert [source.seed for source in tasks.sets.values()] == [5, 3]  # type: ignore[attr-defined]
    assert tasks.sample("test", range(6)).query[0].shape == (6, 4, 1, 6, 6)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["glyph"], r"sets\.glyph='glyph': one of cifar_fs, .* is needed; did you mean glyphs\?"),
        (["glyphs", "glyphs"], "each name once is needed"),
        ([], "at least one set is needed"),
        ({"glyphs": 5}, r"sets\.glyphs=5: a mapping of settings is needed"),
        ({"mine": {"source": "floder"}}, r"sets\.mine\.source='floder': .*did you mean folder\?"),
        ({"mine": {"source": ["folder"]}}, r"sets\.mine\.source=\['folder'\]: one of"),
        ({"folder": {}}, r"sets\.folder\.root=None: this setting has to be given"),
        ({"folder": {"rot": "a"}}, r"sets\.folder\.rot='a': there is no such setting; did you m"),
        ({"folder": {"root": "nowhere"}}, r"sets\.folder\.root='nowhere': nothing is there"),
        ({"omniglot": {"split": "half"}}, r"sets\.omniglot\.split='half'"),
    ],
)
def test_names_and_settings_that_cannot_work(given: Any, sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        mixture_tasks(given)


def test_settings_of_all_sets_are_named_as_such(tmp_path: Path) -> None:
    own = {"source": "folder", "root": str(folder(tmp_path)), "channels": 1}
    with pytest.raises(SettingError, match=r"^way=9: .*at most 2 \(in the set one\)$"):
        mixture_tasks({"one": own}, image_size=6, way=9)
