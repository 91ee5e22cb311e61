"""Classification data: what is handed out, how samples are divided, a sentence for each mistake."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from metalearn.data import ClassificationData, digits_data
from metalearn.data.division import divide_samples, stratified_splits
from metalearn.errors import DataError, SettingError
from metalearn.types import Split

SPLITS: tuple[Split, ...] = get_args(Split)


def some(**changes: Any) -> ClassificationData:
    """Ten samples of two classes; picture n is filled with 25 n."""
    shades = torch.arange(0, 250, 25, dtype=torch.uint8)
    settings: dict[str, Any] = {
        "inputs": shades.reshape(10, 1, 1, 1).repeat(1, 1, 2, 3),
        "targets": torch.arange(10) % 2,
        "class_names": ("even", "odd"),
        "splits": {
            "train": torch.tensor([5, 0, 1, 2]),
            "validation": torch.tensor([3, 4]),
            "test": torch.tensor([9, 8, 6]),
        },
    }  # fmt: skip
    return ClassificationData(**(settings | changes))


def checksum(splits: Mapping[Split, Tensor]) -> str:
    """Of the indices as little-endian 64-bit numbers, split after split."""
    content = b"".join(splits[split].numpy().astype("<i8").tobytes() for split in SPLITS)
    return hashlib.sha256(content).hexdigest()[:16]


def assert_stratified(data: ClassificationData, shares: tuple[float, float, float]) -> None:
    """Every class in every split by its share, within one sample; no sample twice, none left."""
    everything = torch.cat([data.splits[split] for split in SPLITS])
    assert sorted(everything.tolist()) == list(range(len(data.inputs)))
    whole = Counter(data.targets.tolist())
    for split, share in zip(SPLITS, shares):
        found = Counter(data.targets[data.splits[split]].tolist())
        assert set(found) == set(range(data.outputs))
        assert all(abs(found[c] - share * whole[c]) <= 1 for c in whole)


# --- what comes out -------------------------------------------------------------------------


def test_pictures_are_scaled_to_the_unit_interval_and_nothing_else() -> None:
    data = some(inputs=torch.arange(60, dtype=torch.uint8).mul(4).reshape(10, 1, 2, 3))
    x, y = data.take(torch.tensor([3, 3, 9]))
    expected = data.inputs.numpy()[[3, 3, 9]].astype(np.float32) / np.float32(255)
    assert x.dtype == torch.float32 and x.numpy().tolist() == expected.tolist()
    assert y.dtype == torch.int64 and y.tolist() == [1, 1, 1]


def test_members_get_batches_of_their_own() -> None:
    data, rows = some(), torch.tensor([[1, 2, 3], [4, 4, 0]])
    x, y = data.take(rows)
    assert x.shape == (2, 3, 1, 2, 3) and y.tolist() == [[1, 0, 1], [0, 0, 0]]
    for member, row in enumerate(rows):
        alone, labels = data.take(row)
        assert torch.equal(x[member], alone) and torch.equal(y[member], labels)


def test_floats_are_handed_on_as_they_are() -> None:
    inputs = torch.randn(10, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data = some(inputs=inputs)
    assert data.input_shape == (5,)
    x, _ = data.take(torch.tensor([[7, 2]]))
    assert torch.equal(x, inputs[[7, 2]].float()[None])


def test_a_part_is_a_split_in_its_order() -> None:
    data = some()
    assert (data.input_shape, data.outputs, data.kind) == ((1, 2, 3), 2, "classification")
    x, y = data.part("train")
    assert (x[:, 0, 0, 0] * 255 / 25).round().tolist() == [5, 0, 1, 2]
    assert y.tolist() == [1, 0, 1, 0] and data.size("train") == 4
    with pytest.raises(SettingError, match="split='val': one of train, validation, test is needed"):
        data.part("val")  # type: ignore[arg-type]


def test_data_are_moved_once_and_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    data, moves = some(), []
    before, to = data.inputs.clone(), Tensor.to

    def counted(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        moves.append(self.shape)
        return to(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", counted)
    for _ in range(3):
        data.take(torch.tensor([0, 1]))[0].zero_()
    assert moves.count(data.inputs.shape) == 1
    assert torch.equal(data.inputs, before)


# --- division -------------------------------------------------------------------------------


def test_the_first_samples_of_an_order_of_each_class() -> None:
    """By plain loops; the order of a class is the stream's, whatever the other classes are."""
    targets = torch.tensor([0] * 10 + [1] * 4 + [0] * 10)
    one, other, rest = divide_samples(targets, names="ab", fractions=(0.1, 0.25), seed=3)
    counts = [[int((targets[part] == c).sum()) for c in (0, 1)] for part in (one, other, rest)]
    assert counts == [[2, 1], [5, 1], [13, 2]]
    alone = divide_samples(targets[targets == 0], names="a", fractions=(0.1, 0.25), seed=3)
    places = torch.where(targets == 0)[0]
    assert torch.equal(places[alone[0]], one[targets[one] == 0])
    again = divide_samples(targets, names="ab", fractions=(0.1, 0.25), seed=3)
    assert all(torch.equal(a, b) for a, b in zip((one, other, rest), again))


def test_every_sample_is_as_likely_as_any_other() -> None:
    targets = torch.zeros(12, dtype=torch.int64)
    first = [divide_samples(targets, names="a", fractions=(0.25,), seed=s)[0] for s in range(2000)]
    shares = torch.cat(first).bincount() / 2000
    assert (shares - 0.25).abs().max() < 5 * (0.25 * 0.75 / 2000) ** 0.5


def test_a_class_with_too_few_samples_is_named() -> None:
    targets = torch.tensor([0, 0, 0, 0, 1, 1])
    sentence = r"the class odd has 2 samples, too few to give each of 3 parts its share \(fractions"
    with pytest.raises(DataError, match=sentence):
        stratified_splits(
            targets, names=("even", "odd"), validation_fraction=0.2, test_fraction=0.2, seed=0
        )


# --- the digits -----------------------------------------------------------------------------


def test_the_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    data, source = digits_data(), load_digits()
    assert data.inputs.shape == (1797, 1, 8, 8) and data.outputs == 10
    assert data.class_names == tuple("0123456789")
    assert torch.equal(data.targets, torch.from_numpy(source.target))
    off = data.inputs[:, 0].double() - torch.from_numpy(source.images) * 255 / 16
    assert off.abs().max() <= 0.5
    assert set(data.inputs.flatten().tolist()) >= {0, 16, 128, 255}


def test_digits_are_divided_by_class() -> None:
    assert_stratified(digits_data(), (0.6, 0.15, 0.25))
    shares = (0.35, 0.35, 0.3)
    assert_stratified(digits_data(validation_fraction=0.35, test_fraction=0.3, seed=8), shares)


@pytest.mark.parametrize(("seed", "known"), [(0, "eb2c0e469178058b"), (1, "132ce4bbc119afb7")])
def test_splits_have_the_recorded_checksum(seed: int, known: str) -> None:
    """The same on any machine, with any version; a change would leak test samples of old runs."""
    assert checksum(digits_data(seed=seed).splits) == known
    assert checksum(digits_data(seed=seed).splits) == known


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": torch.zeros(10, 4, dtype=torch.uint8)},
         r"inputs='torch.uint8 \[10, 4\]': uint8 pictures \[N, channels, height, width\], floats"),
        ({"inputs": torch.zeros(10, 4, dtype=torch.int16)}, r"inputs='torch.int16 \[10, 4\]'"),
        ({"inputs": torch.zeros(10)}, r"inputs='torch.float32 \[10\]'"),
        ({"targets": torch.zeros(9, dtype=torch.int64)},
         r"targets='torch.int64 \[9\]': int64 class indices \[10\] are needed"),
        ({"targets": torch.zeros(10)}, r"targets='torch.float32 \[10\]'"),
        ({"targets": torch.arange(10)}, r"targets='0..9': 2 classes have indices in 0..1"),
        ({"targets": torch.arange(10) % 2 - 1}, r"targets='-1..0'"),
        ({"class_names": ("one",)}, "class_names=1: at least two classes are needed"),
    ],
)  # fmt: skip
def test_samples_that_contradict_one_another(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        some(**changes)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (None, r"splits=\['test', 'validation'\]: train, validation and test are needed"),
        ([], r"splits\['train'\]='torch.int64 \[0\]': sample indices|at least one"),
        ([0.0], r"splits\['train'\]='torch.float32 \[1\]': int64 sample indices \[n\] are needed"),
        ([[0]], r"splits\['train'\]='torch.int64 \[1, 1\]'"),
        ([0, 10], r"splits\['train'\]='0..10': samples lie in 0..9"),
        ([-1], r"splits\['train'\]='-1..-1': samples lie in 0..9"),
        ([0, 0], r"splits=\['train'\]: sample 0 stands twice; once is accepted"),
        ([0, 9], r"splits=\['train', 'test'\]: sample 9 stands twice"),
    ],
)
def test_splits_that_contradict_one_another(train: list[Any] | None, message: str) -> None:
    splits: dict[str, Any] = {"validation": torch.tensor([3, 4]), "test": torch.tensor([9])}
    if train is not None:
        splits = {"train": torch.tensor(train or [0])[: len(train)], **splits}
    with pytest.raises(SettingError, match=message):
        some(splits=splits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_fraction": 0}, "validation_fraction=0: a number between 0 and 1 is needed"),
        ({"test_fraction": 1.0}, "test_fraction=1.0: a number between 0 and 1 is needed"),
        ({"test_fraction": "half"}, "test_fraction='half': a number between 0 and 1"),
        ({"test_fraction": float("nan")}, "test_fraction=nan: a number between 0 and 1"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5},
         "test_fraction=0.5: with validation_fraction=0.5 the sum must stay below 1"),
        ({"seed": -1}, r"seed=-1: a whole number in 0..2\^64-1 is needed"),
    ],
)  # fmt: skip
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        digits_data(**settings)
