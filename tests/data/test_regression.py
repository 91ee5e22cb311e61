"""Regression data: what is handed out, a sentence for each mistake; the waves that are computed."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest
import torch

from metalearn.data import RegressionData, waves_data
from metalearn.errors import SettingError


def some(**changes: Any) -> RegressionData:
    """Ten samples of two targets: n and n²."""
    numbers = torch.arange(10.0)
    settings: dict[str, Any] = {
        "inputs": numbers[:, None] / 10,
        "targets": torch.stack([numbers, numbers**2], 1),
        "splits": {
            "train": torch.tensor([5, 0, 1, 2]),
            "validation": torch.tensor([3, 4]),
            "test": torch.tensor([9, 8, 6]),
        },
    }
    return RegressionData(**(settings | changes))


def test_samples_come_by_their_index() -> None:
    data = some()
    x, y = data.take(torch.tensor([3, 9, 3]))
    assert x.shape == (3, 1) and x.flatten().tolist() == pytest.approx([0.3, 0.9, 0.3])
    assert y.tolist() == [[3.0, 9.0], [9.0, 81.0], [3.0, 9.0]]
    assert (data.input_shape, data.outputs, data.kind) == ((1,), 2, "regression")
    x, y = data.part("test")
    assert y[:, 0].tolist() == [9.0, 8.0, 6.0] and data.size("test") == 3


def test_members_get_batches_of_their_own() -> None:
    x, y = some().take(torch.tensor([[1, 2, 3], [4, 4, 0]]))
    assert x.shape == (2, 3, 1) and y.shape == (2, 3, 2)
    assert y[1, :, 0].tolist() == [4.0, 4.0, 0.0]
    x, y = some().take(torch.tensor(7))
    assert x.shape == (1,) and y.tolist() == [7.0, 49.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_targets_of_other_precision_are_handed_out_in_float32(dtype: torch.dtype) -> None:
    data = some(targets=torch.ones(10, 1, dtype=dtype))
    assert data.take(torch.tensor([0]))[1].dtype == torch.float32


def test_pictures_are_scaled_to_the_unit_interval() -> None:
    pictures = torch.full((10, 1, 2, 2), 51, dtype=torch.uint8)
    x, _ = some(inputs=pictures).take(torch.tensor([0]))
    assert x.dtype == torch.float32 and x.unique().tolist() == pytest.approx([0.2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": torch.ones(10)}, r"targets='torch.float32 \[10\]': floats \[10, D\] are"),
        ({"targets": torch.ones(9, 1)}, r"targets='torch.float32 \[9, 1\]': floats \[10, D\]"),
        ({"targets": torch.ones(10, 1).long()}, "targets='torch.int64 .*: floats"),
        ({"targets": torch.ones(10, 1) + 0j}, "targets"),
        ({"targets": torch.ones(10, 0)}, r"targets=\[10, 0\]: at least one for each sample"),
        (
            {"targets": torch.tensor([[math.inf]] * 2 + [[1.0]] * 8)},
            "targets='2 samples': finite numbers are needed; sample 0 has others",
        ),
        (
            {"targets": torch.full((10, 1), 1e39, dtype=torch.float64)},
            "targets='10 samples': finite",
        ),
        ({"inputs": torch.ones(10)}, "inputs='torch.float32 .*: uint8 pictures"),
        ({"splits": {"train": torch.tensor([0])}}, "splits=.*: train, validation and test"),
        (
            {"splits": dict.fromkeys(("train", "validation", "test"), torch.tensor([0]))},
            "splits=.*: sample 0 stands twice",
        ),
        ({"inputs": [1.0]}, "inputs=.*: a Tensor is needed"),
    ],
)
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        some(**changes)


# --- waves -----------------------------------------------------------------------------------


def test_waves_are_sines_with_noise_that_grows() -> None:
    data = waves_data(samples=20000, noise=0.3, targets=2)
    x, y = data.inputs.double(), data.targets.double()
    assert -5 <= float(x.min()) < -4.99 and 4.99 < float(x.max()) <= 5
    phases = torch.tensor([0.0, math.pi / 2], dtype=torch.float64)
    scaled = (y - torch.sin(x + phases)) / (0.3 * torch.exp(x / 5))
    assert scaled.mean(0).abs().max() < 0.03
    torch.testing.assert_close(
        scaled.mT.cov(), torch.eye(2, dtype=torch.float64), rtol=0, atol=0.04
    )
    assert 0.65 < float((scaled.abs() < 1).double().mean()) < 0.71


def test_waves_are_divided_by_their_shares() -> None:
    data = waves_data(samples=100, validation_fraction=0.3, test_fraction=0.25)
    assert [data.size(split) for split in ("train", "validation", "test")] == [45, 30, 25]
    rows = torch.cat(list(data.splits.values()))
    assert rows.sort().values.tolist() == list(range(100))
    few = waves_data(samples=3, validation_fraction=0.01, test_fraction=0.01)
    assert [few.size(split) for split in ("train", "validation", "test")] == [1, 1, 1]


def test_waves_belong_to_their_seed() -> None:
    one, again, other = waves_data(seed=1), waves_data(seed=1), waves_data(seed=2)
    assert torch.equal(one.targets, again.targets) and not torch.equal(one.targets, other.targets)
    assert not torch.equal(one.splits["test"], other.splits["test"])
    places = b"".join(rows.numpy().astype("<i8").tobytes() for rows in one.splits.values())
    found = hashlib.sha256(one.inputs.numpy().astype("<f4").tobytes() + places).hexdigest()
    assert found[:16] == "8a71ae723f9a0324"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 2}, "samples=2: a whole number of at least 3 is needed"),
        ({"targets": 0}, "targets=0: a whole number of at least 1 is needed"),
        ({"noise": 0.0}, "noise=0.0: a finite number above 0 is needed"),
        ({"noise": math.inf}, "noise=inf: a finite number above 0 is needed"),
        ({"samples": 10**13}, "samples=10000000000000: what fits the memory"),
        ({"test_fraction": 1.0}, "test_fraction=1.0: a number between 0 and 1"),
        (
            {"samples": 10, "test_fraction": 0.5, "validation_fraction": 0.49},
            "samples=10: 10 are for validation and test, so more are needed",
        ),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_waves_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        waves_data(**settings)
