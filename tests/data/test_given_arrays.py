"""Arrays of every kind that people bring: kept as they are, copied, or refused by a sentence."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, random_split

from metalearn.data import classification_data, regression_data
from metalearn.errors import SettingError

LABELS = np.arange(30) % 3
SMALL = np.arange(60).reshape(30, 2)  # held exactly by every kind below
KINDS = [
    *(np.dtype(kind) for kind in "?bhilqBHILQefdg"),
    *(np.dtype(f"{order}{kind}") for order in "<>" for kind in ("i2", "i8", "u4", "f4", "f8")),
]


# --- kinds of numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_numbers_of_every_kind_of_numpy_are_inputs_labels_targets_and_rows(kind: np.dtype) -> None:
    given, labels = SMALL.astype(kind), LABELS.astype(kind)
    wanted = torch.tensor(given.astype(np.float64)).float()
    assert torch.equal(classification_data(given, LABELS).inputs, wanted)
    assert torch.equal(classification_data(list(given), LABELS).inputs, wanted)
    classes = torch.tensor(labels.astype(np.int64))
    assert torch.equal(classification_data(SMALL, labels).targets, classes)
    if kind.kind != "b":
        assert torch.equal(regression_data(SMALL, given).targets, wanted)
    if kind.kind in "iu":
        rows: Any = dict(zip(("train", "validation", "test"), np.split(np.arange(30), [10, 20])))
        rows = {name: part.astype(kind) for name, part in rows.items()}
        assert classification_data(SMALL, LABELS, splits=rows).splits["test"][0] == 20
        assert classification_data(given, LABELS, tokens=True).inputs.dtype == torch.int64


@pytest.mark.parametrize("kind", [torch.uint16, torch.uint32, torch.uint64, torch.bfloat16])
def test_numbers_of_every_kind_of_torch(kind: torch.dtype) -> None:
    given = torch.from_numpy(SMALL).to(kind)
    assert torch.equal(classification_data(given, LABELS).inputs, torch.from_numpy(SMALL).float())
    assert classification_data(SMALL, torch.from_numpy(LABELS).to(kind)).outputs == 3


@pytest.mark.parametrize("number", [2**24 + 1, -(2**24) - 1, 2**31 - 1, 2**53 + 1])
def test_whole_numbers_that_float32_would_round_are_refused(number: int) -> None:
    given = SMALL.copy()
    given[7, 1] = number
    for make in (classification_data, regression_data):
        with pytest.raises(SettingError, match=f"^x={number}: float32 rounds this whole number"):
            make(given, LABELS)
    with pytest.raises(SettingError, match=f"^y={number}: float32 rounds"):
        regression_data(SMALL, given)
    given[7, 1] = 2**25  # is held as it is
    assert classification_data(given, LABELS).inputs[7, 1] == 2**25


def test_whole_numbers_that_no_int64_holds_are_refused() -> None:
    given = SMALL.astype(np.uint64)
    given[3, 0] = 2**63
    with pytest.raises(SettingError, match=r"^x=9223372036854775808: numbers below 2\^63"):
        classification_data(given, LABELS, tokens=True)


# --- tables ---------------------------------------------------------------------------------------


class Frame:
    """What NumPy sees of a data frame with columns of several kinds."""

    def __init__(self, **columns: Any) -> None:
        self.columns = list(columns)
        self._cells = np.array(list(zip(*columns.values())), dtype=object)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._cells if dtype is None else self._cells.astype(dtype)


def test_a_frame_of_mixed_numbers_is_floats_and_words_in_it_are_named_by_column() -> None:
    whole = list(range(30))
    truths = [bool(n % 2) for n in whole]
    prices = [Decimal(n) / 4 for n in whole]
    found = classification_data(Frame(n=whole, yes=truths, price=prices), LABELS)
    assert found.inputs[5].tolist() == [5, 1, 1.25]
    assert regression_data(SMALL, Frame(n=whole, yes=truths)).targets[5].tolist() == [5, 1]
    assert classification_data(SMALL, Frame(yes=truths)).class_names == ("False", "True")
    for odd, shown in (("red", "'red'"), (None, "None")):
        words = [odd if n == 4 else n for n in whole]
        with pytest.raises(SettingError, match=f"^x={shown}: .* column 'colour' has 1 others"):
            classification_data(Frame(n=whole, colour=words), LABELS)


# --- sequences ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("make", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_a_sequence_may_be_empty_wherever_it_stands(make: Any, place: int) -> None:
    texts = [[5, 6], [7], [8, 9]]
    texts[place] = []
    wanted = [[*text, 0, 0][:2] for text in texts]
    rows = [make(text) for text in texts] * 10
    assert classification_data(rows, LABELS, tokens=True).inputs[:3].tolist() == wanted
    column = np.empty(30, dtype=object)
    column[:] = rows
    assert classification_data(column, LABELS, tokens=True).inputs[:3].tolist() == wanted


def test_sequences_that_are_all_empty_are_refused() -> None:
    with pytest.raises(SettingError, match=r"^x='shape \[30, 0\]': at least one token"):
        classification_data([[]] * 30, LABELS, tokens=True)


# --- pictures of floats ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_whose_channels_stand_last_are_refused(kind: Any, channels: int) -> None:
    pictures = np.ones((30, 8, 12, channels), kind)
    with pytest.raises(SettingError, match=r"^x='shape .*\.permute\(0, 3, 1, 2\)"):
        classification_data(pictures, LABELS)
    data = classification_data(torch.as_tensor(pictures).permute(0, 3, 1, 2), LABELS)
    assert data.input_shape == (channels, 8, 12)


@pytest.mark.parametrize("shape", [(64, 4, 4), (3, 8, 3), (16, 3, 3), (25, 10, 3), (8, 8, 8)])
def test_floats_of_other_shapes_are_no_pictures_with_channels_last(shape: tuple[int, ...]) -> None:
    assert classification_data(np.ones((30, *shape)), LABELS).input_shape == shape


# --- whose memory it is ---------------------------------------------------------------------------


def _splits() -> dict[str, Tensor]:
    names = ("train", "validation", "test")
    return dict(zip(names, torch.arange(30).split(10)))


@pytest.mark.parametrize(
    "make", [lambda t: t, lambda t: t.numpy(), list], ids=["tensor", "array", "list"]
)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.uint8, torch.int64])
def test_what_is_given_may_be_changed_later(make: Callable[[Tensor], Any], kind: Any) -> None:
    own = torch.zeros(30, 3, 2, 2, dtype=kind), torch.arange(30) % 3
    tokens, numbers, splits = torch.ones(30, 2, dtype=torch.int64), torch.zeros(30, 2), _splits()
    rows: Any = splits
    found = [
        classification_data(make(own[0]), make(own[1]), splits=rows),
        classification_data(make(tokens), own[1], tokens=True, splits=rows),
        regression_data(make(own[0]), make(numbers), splits=rows),
        regression_data(TensorDataset(own[0], numbers), splits=rows),
    ]
    before = [(d.inputs.clone(), d.targets.clone(), d.splits["train"].clone()) for d in found]
    for tensor in (*own, tokens, numbers, *splits.values()):
        tensor.fill_(2)
    for data, (inputs, targets, train) in zip(found, before):
        assert torch.equal(data.inputs, inputs) and torch.equal(data.targets, targets)
        assert torch.equal(data.splits["train"], train)


# --- names of classes -----------------------------------------------------------------------------


class Named(Dataset[Any]):
    classes = ("cat", "dog", "eel", "fox")

    def __len__(self) -> int:
        return 40

    def __getitem__(self, number: int) -> Any:
        return torch.full((2,), float(number)), number % 4


WITHOUT_DOGS = [number for number in range(40) if number % 4 != 1]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (Subset(Named(), range(20)), Named.classes),
        (Subset(Subset(Named(), range(30)), range(20)), Named.classes),
        (random_split(Named(), [30, 10], torch.Generator().manual_seed(0))[0], Named.classes),
        (ConcatDataset([Named(), Named()]), Named.classes),
        (Subset(Named(), WITHOUT_DOGS), ("cat", "eel", "fox")),
        (Subset(Named(), [n for n in range(40) if n % 4 < 3]), ("cat", "dog", "eel")),
    ],
)
def test_classes_keep_the_names_of_a_dataset_by_their_numbers(
    given: Any, names: tuple[str, ...]
) -> None:
    data = classification_data(given)
    assert data.class_names == names
    for row, target in zip(data.inputs[:, 0].int().tolist(), data.targets.tolist()):
        assert data.class_names[target] == Named.classes[row % 4]


def test_labels_that_a_dataset_has_no_names_for_keep_their_own() -> None:
    class Few(Named):
        classes = ("cat", "dog")  # type: ignore[assignment]

    assert classification_data(Few()).class_names == ("0", "1", "2", "3")
    assert classification_data(ConcatDataset([Few(), Named()])).class_names == tuple("0123")


# --- keys of one's own ----------------------------------------------------------------------------


@pytest.mark.parametrize("key", [1, None, ("a", 1), "valid"])
@pytest.mark.parametrize("make", [classification_data, regression_data])
def test_splits_of_other_names_are_shown_whatever_their_keys_are(make: Any, key: Any) -> None:
    rows = {"train": [0], key: [1], "test": [2]}
    with pytest.raises(SettingError, match="^splits=.*: train, validation and test are needed"):
        make(SMALL, LABELS, splits=rows)
    data = make(SMALL, LABELS)
    with pytest.raises(SettingError, match="^splits=.*: train, validation and test are needed"):
        type(data)(
            **{**_fields(data), "splits": {name: torch.tensor(r) for name, r in rows.items()}}
        )


def _fields(data: Any) -> dict[str, Any]:
    names = ("inputs", "targets", "class_names")
    return {name: getattr(data, name) for name in names if hasattr(data, name)}
