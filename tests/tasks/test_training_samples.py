"""Samples of the training classes: which pictures they are, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from metalearn.data import AffineRanges
from metalearn.data.affine import AFFINE_DRAWS, change_pictures
from metalearn.errors import SettingError
from metalearn.random_streams import AddressedStream
from metalearn.tasks import FewShotTasks, SinusoidTasks
from metalearn.types import SampleDistribution
from tests.support.builders import assert_same, labelled, read_pictures

GROUPS = ["a"] * 5 + ["b"] * 3 + ["c"] * 4 + ["d"] * 4
DATA = labelled(groups=GROUPS)  # classes 0..7 train
SETTINGS: dict[str, dict[str, Any]] = {
    "upright": {},
    "turned": {"rotate_train": True},
    "alphabets": {"within_group": True, "turn_groups": True},
    "large_alphabets": {"within_group": True, "way": 4},
}
CLASSES = {"upright": 8, "turned": 32, "alphabets": 32, "large_alphabets": 5}


def make(**settings: Any) -> FewShotTasks:
    return FewShotTasks(DATA, **{"way": 3, "shot": 1, "query": 2} | settings)


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_class_is_a_class_of_the_data_and_a_quarter_turn(name: str) -> None:
    tasks = make(**SETTINGS[name])
    x, y = tasks.training_samples(range(4), 200)
    assert tasks.training_classes == CLASSES[name]
    assert x.shape == (4, 200, *tasks.input_shape) and y.shape == (4, 200)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    read = read_pictures(DATA, x.flatten(0, 1))
    made = {}
    for label, (c, _, turn) in zip(y.flatten().tolist(), read):
        assert made.setdefault(label, (c, turn)) == (c, turn)
    assert sorted(made) == list(range(CLASSES[name]))  # all, each another
    assert len(set(made.values())) == len(made) and {c for c, _ in made.values()} <= set(range(8))


def test_samples_are_those_that_tasks_draw_from() -> None:
    tasks = make(within_group=True, turn_groups=True)
    ids = {
        int(i) for index in range(300) for i in tasks.sample("train", [index]).class_ids.flatten()
    }
    read = read_pictures(DATA, tasks.training_samples([0], 800)[0][0])
    assert {c + 16 * turn for c, _, turn in read} == ids


def test_every_picture_is_as_likely() -> None:
    x, _ = make(rotate_train=True).training_samples(range(20), 1000)
    read = read_pictures(DATA, x.flatten(0, 1))
    counts = np.unique(np.array(read), axis=0, return_counts=True)[1]
    expected = 20000 / len(counts)
    spread = ((counts - expected) ** 2 / expected).sum()  # chi-squared
    assert abs(spread - len(counts)) < 5 * (2 * len(counts)) ** 0.5


def test_a_batch_has_an_address() -> None:
    one, other = make(seed=3), make(seed=4)
    together = one.training_samples([5, 0, 7], 6)
    for row, index in enumerate([5, 0, 7]):
        alone = make(seed=3, way=2).training_samples([index], 6)
        assert_same(tuple(v[row] for v in together), tuple(v[0] for v in alone))
    assert not torch.equal(together[0], other.training_samples([5, 0, 7], 6)[0])
    assert_same(one.training_samples([1], 6), make(seed=3, eval_seed=9).training_samples([1], 6))


def test_samples_are_changed_as_the_pictures_of_tasks_are() -> None:
    ranges = {"rotate": 20.0, "scale": 0.2, "shear": 0.1, "shift": 0.1}
    plain, y = make().training_samples([7], 9)
    changed, labels = make(augment=ranges).training_samples([7], 9)
    draws = torch.from_numpy(AddressedStream(0, "affine", 7).uniform(9 * AFFINE_DRAWS))
    expected = change_pictures(plain[0], AffineRanges(**ranges), draws.view(9, -1).float())
    assert_same(changed[0], expected)
    assert_same(y, labels)


def test_which_tasks_have_samples() -> None:
    assert isinstance(make(), SampleDistribution)
    assert not isinstance(SinusoidTasks(), SampleDistribution)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([], 4), "^indices=.*: at least one index of a batch is needed"),
        (([0], 0), "^size=0: a whole number of at least 1 is needed"),
        (([0], 1.5), "^size=1.5: "),
        (([-1], 2), "^index=-1: "),
    ],
)
def test_bad_calls(given: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make().training_samples(*given)


def test_data_without_a_training_split_have_none() -> None:
    tasks = FewShotTasks(labelled(splits={"test": tuple(range(8))}), way=3)
    with pytest.raises(SettingError, match="^split='train': these data have test"):
        tasks.training_samples([0], 2)
