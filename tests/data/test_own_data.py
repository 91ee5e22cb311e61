"""Data of one's own in one line: what is taken for what, and a sentence for all else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from metalearn import Ensemble
from metalearn.data import classification_data, regression_data
from metalearn.errors import DataError, SettingError
from metalearn.models import MLP
from metalearn.trainers import EnsembleTrainer, HyperTrainer, PerSampleTrainer

WORDS = [("cat", "dog", "eel")[n % 3] for n in range(30)]
NUMBERS = torch.arange(30) % 3
X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))


# --- labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (WORDS, ("cat", "dog", "eel")),
        (np.array(WORDS), ("cat", "dog", "eel")),
        (np.array(WORDS, dtype=object), ("cat", "dog", "eel")),
        (NUMBERS, ("0", "1", "2")),
        (NUMBERS + 1, ("1", "2", "3")),
        (NUMBERS * 9 - 9, ("-9", "0", "9")),
        (NUMBERS.int(), ("0", "1", "2")),
        (NUMBERS.double(), ("0", "1", "2")),
        (NUMBERS[:, None], ("0", "1", "2")),
        (NUMBERS.tolist(), ("0", "1", "2")),
        (list(NUMBERS), ("0", "1", "2")),
        (nn.functional.one_hot(NUMBERS), ("0", "1", "2")),
        (np.eye(3)[NUMBERS.numpy()], ("0", "1", "2")),
        (NUMBERS.numpy().astype(np.uint8), ("0", "1", "2")),
    ],
)
def test_labels_of_every_kind_become_classes_in_their_order(
    labels: Any, names: tuple[str, ...]
) -> None:
    data = classification_data(X, labels)
    assert data.class_names == names and data.targets.dtype == torch.int64
    assert torch.equal(data.targets, NUMBERS) and torch.equal(data.inputs, X)


def test_truth_values_are_two_classes_and_names_may_be_given() -> None:
    data = classification_data(X, NUMBERS > 0, class_names=["no", "yes"])
    assert data.class_names == ("no", "yes") and torch.equal(data.targets, (NUMBERS > 0).long())


# --- inputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        X.double(),
        X.double().numpy(),
        X.tolist(),
        list(X),
        list(X.numpy()),
        X.clone().requires_grad_(),
    ],
)
def test_numbers_of_every_kind_become_float32(given: Any) -> None:
    data = classification_data(given, WORDS)
    assert data.inputs.dtype == torch.float32 and not data.inputs.requires_grad
    assert torch.equal(data.inputs, X)


def test_whole_numbers_are_floats_unless_they_are_said_to_be_tokens() -> None:
    numbers = torch.arange(60).reshape(30, 2)
    assert classification_data(numbers, WORDS).inputs.dtype == torch.float32
    tokens = classification_data(numbers, WORDS, tokens=True)
    x, _ = tokens.take(torch.tensor([[29, 0]]))
    assert x.dtype == torch.int64 and x.tolist() == [[[58, 59], [0, 1]]]


def test_sequences_of_different_lengths_are_padded_with_zeros() -> None:
    texts = [[5], [6, 7, 8], [9, 1]] * 10
    data = classification_data(texts, WORDS, tokens=True)
    assert data.inputs[:3].tolist() == [[5, 0, 0], [6, 7, 8], [9, 1, 0]]
    with pytest.raises(SettingError, match=r"^x\[1\]='shape \[3\]': shape \[1\] is needed, that"):
        classification_data(texts, WORDS)


def test_bytes_are_pictures_with_or_without_a_channel() -> None:
    pictures = torch.arange(30, dtype=torch.uint8).reshape(30, 1, 1).expand(30, 5, 6)
    data = classification_data(pictures, WORDS)
    assert data.input_shape == (1, 5, 6) and data.inputs.dtype == torch.uint8
    coloured = pictures[:, None].expand(30, 3, 5, 6)
    assert torch.equal(classification_data(coloured.numpy(), WORDS).inputs, coloured)
    with pytest.raises(SettingError, match=r"permute\(0, 3, 1, 2\)"):
        classification_data(coloured.permute(0, 2, 3, 1), WORDS)


# --- a Dataset ----------------------------------------------------------------------------------


class Pictures(Dataset):
    classes = ("cat", "dog", "eel")

    def __init__(self, mode: str = "RGB", odd: int = -1) -> None:
        self.mode, self.odd = mode, odd

    def __len__(self) -> int:
        return 30

    def __getitem__(self, number: int) -> tuple[Image.Image, int]:
        height = 4 + (number == self.odd)
        return Image.new(self.mode, (3, height), color=number), number % 3


def test_a_dataset_of_pairs_is_read_in_its_order() -> None:
    plain = TensorDataset(X, NUMBERS)
    for given in (plain, DataLoader(plain, batch_size=7, shuffle=True), (X, NUMBERS)):
        data = classification_data(given)
        assert torch.equal(data.inputs, X) and torch.equal(data.targets, NUMBERS)


def test_pictures_of_a_dataset_keep_their_names_and_channels() -> None:
    data = classification_data(Pictures())
    assert data.class_names == Pictures.classes and data.input_shape == (3, 4, 3)
    assert data.inputs[7, 0].unique().tolist() == [7]
    assert classification_data(Pictures("L")).input_shape == (1, 4, 3)
    with pytest.raises(SettingError, match=r"^x\[5\]='shape \[3, 5, 3\]': shape \[3, 4, 3\] is"):
        classification_data(Pictures(odd=5))


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter([(torch.ones(2), 0)])


# --- splits -------------------------------------------------------------------------------------


def test_classes_are_divided_by_their_shares() -> None:
    data = classification_data(torch.rand(100, 2), torch.arange(100) % 2, fractions=(0.5, 0.3, 0.2))
    for split, count in (("train", 25), ("validation", 15), ("test", 10)):
        rows = data.splits[split]  # type: ignore[index]
        assert torch.bincount(data.targets[rows]).tolist() == [count, count]
    assert sorted(torch.cat(list(data.splits.values())).tolist()) == list(range(100))
    again = classification_data(data.inputs, data.targets, fractions=(0.5, 0.3, 0.2))
    other = classification_data(data.inputs, data.targets, fractions=(0.5, 0.3, 0.2), seed=1)
    assert torch.equal(again.splits["test"], data.splits["test"])
    assert not torch.equal(other.splits["test"], data.splits["test"])


@pytest.mark.parametrize("kind", ["lists", "masks", "arrays"])
def test_splits_of_ones_own(kind: str) -> None:
    rows = {
        "train": list(range(20)),
        "validation": list(range(20, 25)),
        "test": list(range(25, 30)),
    }
    made = {
        "lists": lambda r: r,
        "arrays": lambda r: np.array(r, dtype=np.int32),
        "masks": lambda r: torch.isin(torch.arange(30), torch.tensor(r)),
    }[kind]
    given: Any = {name: made(r) for name, r in rows.items()}
    for data in (classification_data(X, WORDS, splits=given), regression_data(X, X, splits=given)):
        assert {name: part.tolist() for name, part in data.splits.items()} == rows


def test_targets_are_rows_of_float32() -> None:
    data = regression_data(X.numpy(), X[:, 0].double().numpy(), fractions=(0.8, 0.1, 0.1))
    assert data.targets.dtype == torch.float32 and torch.equal(data.targets, X[:, :1])
    assert [data.size(s) for s in ("train", "validation", "test")] == [24, 3, 3]
    assert regression_data(TensorDataset(X, X)).outputs == 4


# --- what is refused ----------------------------------------------------------------------------

NAN = torch.where(torch.arange(30)[:, None] == 4, math.nan, X)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((X, WORDS[:5]), r"y='shape \[5\]': labels \[30\] are needed, one for each input"),
        ((X, X[:, 0]), "y=.*: labels are whole numbers or strings; regression_data takes real"),
        ((X, X[:, :2]), r"y='shape \[30, 2\]': labels \[N\] are needed, or one-hot rows"),
        ((X, [None] * 30), "y='an array of object': labels of one kind are needed"),
        ((X,), "y=None: a label for each input is needed"),
        ((None, WORDS), "x=None: an array, a tensor or a list of values"),
        ((5, WORDS), "x=5: an array, a tensor"),
        (("pictures", WORDS), r"x='pictures': .*folder_data\(root\) reads a folder of pictures"),
        ((WORDS, WORDS), "x='an array of <U3': numbers are needed"),
        ((NAN, WORDS), "x='1 samples': finite numbers are needed; sample 4 has others"),
        ((X + 0j, WORDS), "x='torch.complex64': real numbers"),
        ((X[:0], []), r"x='shape \[0, 4\]': at least one sample"),
        ((TensorDataset(X, NUMBERS), NUMBERS), "y='Tensor': None is needed beside a Dataset"),
        ((TensorDataset(X),), r"x='TensorDataset\[0\]': samples that are pairs"),
        ((Stream(),), "x='Stream': a Dataset with a length"),
    ],
)
def test_what_is_no_data(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}") as caught:
        classification_data(*given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fractions": (0.5, 0.5)}, r"fractions=\[0.5, 0.5\]: shares of training, validation and"),
        ({"fractions": (0.5, 0.5, 0.5)}, "fractions="),
        ({"fractions": (1, 0, 0)}, "fractions="),
        (
            {"class_names": ["a", "b"]},
            "class_names=.*: 3 different names are needed, of the labels",
        ),
        ({"class_names": ["a", "b", "b"]}, "class_names="),
        ({"splits": {"train": [0]}}, r"splits=\['train'\]: train, validation and test"),
        ({"tokens": True}, r"x='torch.float32 \[30, 4\]': whole numbers \[N, L\]"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        classification_data(X, WORDS, **settings)


def test_a_class_needs_a_sample_for_each_part() -> None:
    with pytest.raises(DataError, match="the class eel has 1 samples, too few"):
        classification_data(X, [*WORDS[:2] * 14, "cat", "eel"])
    with pytest.raises(DataError, match="y: cat is the only label; at least two"):
        classification_data(X, ["cat"] * 30)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (X[:5], r"y='shape \[5, 4\]': targets \[30\] or \[30, D\] are needed"),
        (WORDS, "y='an array of <U3': numbers are needed"),
        (NAN, "targets='1 samples': finite numbers are needed; sample 4"),
        (None, "y=None: a target for each input is needed"),
        (NUMBERS > 0, "y='torch.bool': real numbers are needed"),
    ],
)
def test_what_is_no_target(targets: Any, message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        regression_data(X, targets)


# --- training -----------------------------------------------------------------------------------


class Reader(nn.Module):
    """An embedding, which takes whole numbers alone."""

    def __init__(self, outputs: int, seed: int = 0) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(12, 8), nn.Linear(8, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.last(self.words(tokens).mean(1))
        return found


@pytest.mark.parametrize("trainer", ["ensemble", "per_sample", "hyper"])
def test_tokens_reach_an_embedding_in_every_trainer(trainer: str) -> None:
    """Which word stands in a sentence says its class: the loss falls to nearly nothing."""
    draws = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 12, (60, 5), generator=draws)
    tokens[:, 2] = torch.arange(60) % 3 + 1
    data = classification_data(tokens, torch.arange(60) % 3, tokens=True)
    few: Any = {"progress": False, "compile": "never"}
    if trainer == "hyper":
        inner = {"steps": 2, "batch_size": 8}
        HyperTrainer(Reader(3), data, steps=1, inner=inner, **few).fit()
        return

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=0.1)

    few |= {"steps": 60, "batch_size": 36, "optimizer": adam}
    made: Any = (
        EnsembleTrainer(Ensemble.from_factory(lambda: Reader(3), range(2)), data, **few)
        if trainer == "ensemble"
        else PerSampleTrainer(Reader(3), data, max_norm=math.inf, **few)
    )
    made.fit()
    assert made.test().headline()["test/accuracy"] > 0.9


def test_a_line_with_noise_is_fitted_and_its_interval_covers() -> None:
    """y = 2x + 0.5 z: rmse tends to 0.5, nll to log(0.5) + ½ log(2πe) = 0.73, coverage to 0.95."""
    draws = np.random.default_rng(0)
    x = draws.normal(size=(5000, 1))
    y = 2 * x[:, 0] + 0.5 * draws.normal(size=5000)
    data = regression_data(x, y)
    model = Ensemble.from_factory(lambda seed: MLP((1,), 2, hidden=(16,), seed=seed), range(2))

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=0.01)

    trainer = EnsembleTrainer(model, data, steps=300, optimizer=adam, progress=False)
    trainer.fit()
    found = trainer.test().headline()
    assert found["test/rmse"] == pytest.approx(0.5, abs=0.06)
    assert found["test/nll"] == pytest.approx(0.73, abs=0.12)
    assert found["test/coverage"] == pytest.approx(0.95, abs=0.03)


class _Inverted(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x + 100, 1 - y


def test_what_a_dataset_gives_is_taken_and_what_a_loader_leaves_out_is_refused() -> None:
    y = torch.arange(40) % 2
    data = classification_data(_Inverted(torch.zeros(40, 3), y), None)
    assert torch.equal(data.targets, 1 - y) and bool((data.inputs == 100).all())
    plain = TensorDataset(torch.zeros(40, 3), y)
    for loader in (DataLoader(plain, batch_size=7), DataLoader(plain, shuffle=True)):
        assert torch.equal(classification_data(loader, None).targets, y)
    weights = [1.0] * 40
    for sampler in (SubsetRandomSampler(range(10)), WeightedRandomSampler(weights, 40)):
        with pytest.raises(SettingError, match="Subset of it, is needed where a sampler"):
            classification_data(DataLoader(plain, sampler=sampler), None)


@pytest.mark.parametrize(
    "labels",
    [
        ["a"] * 20 + ["b"] * 10 + [math.nan] * 10,
        ["a"] * 20 + [1] * 20,
        [1e300] * 20 + [2e300] * 20,
        np.ma.masked_equal(np.arange(40) % 3, 2),
    ],
    ids=["words and NaN", "words and numbers", "too large", "masked"],
)
def test_labels_that_are_none_make_no_class(labels: Any) -> None:
    with pytest.raises(SettingError, match="^y="):
        classification_data(np.zeros((40, 3)), labels)


def test_pictures_of_16_bits_are_scaled_and_not_cut() -> None:
    class Pictures(Dataset[Any]):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, number: int) -> Any:
            if number >= 12:
                raise IndexError(number)
            pixels = np.full((4, 4), 256 * 10 * number, dtype=np.uint16)
            return Image.fromarray(pixels), number % 2

    data = classification_data(Pictures(), None)
    assert data.inputs.shape == (12, 1, 4, 4)
    assert data.inputs[:, 0, 0, 0].tolist() == [10 * number for number in range(12)]
