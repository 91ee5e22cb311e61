"""Data at another size: area averages, colour and grey, letters for a model of digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.data import ClassificationData, digits_data, glyphs_data, resized
from metalearn.errors import SettingError


def data_of(inputs: Tensor) -> ClassificationData:
    splits: Any = {s: torch.tensor([i]) for i, s in enumerate(("train", "validation", "test"))}
    return ClassificationData(inputs, torch.tensor([0, 1, 0]), ("a", "b"), splits)


def random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def test_a_quarter_of_the_size_is_a_mean_of_sixteen() -> None:
    data = data_of(random(3, 3, 8, 8))
    small = resized(data, image_size=2)
    means = torch.nn.functional.avg_pool2d(data.inputs.double(), 4)
    assert small.input_shape == (3, 2, 2)
    assert (small.inputs.double() - means).abs().max() <= 0.5
    assert torch.equal(small.targets, data.targets) and small.splits == data.splits
    assert small.take(torch.tensor([0]))[0].shape == (1, 3, 2, 2)


def test_the_same_size_is_the_same_data_and_twice_the_size_repeats() -> None:
    data = data_of(random(3, 1, 4, 4))
    assert torch.equal(resized(data, image_size=4).inputs, data.inputs)
    doubled = data.inputs.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.equal(resized(data, image_size=8).inputs, doubled)


def test_a_margin_is_cut_off_first() -> None:
    data = data_of(random(3, 1, 8, 8))
    cut = data_of(data.inputs[:, :, 2:6, 2:6].contiguous())
    expected = resized(cut, image_size=3).inputs
    assert torch.equal(resized(data, image_size=3, margin=2).inputs, expected)


def test_grey_becomes_colour_by_repeating_and_colour_grey_by_luma() -> None:
    grey = data_of(random(3, 1, 4, 4))
    colour = resized(grey, image_size=4, channels=3)
    assert torch.equal(colour.inputs, grey.inputs.expand(-1, 3, -1, -1))
    assert torch.equal(resized(colour, image_size=4, channels=1).inputs, grey.inputs)
    painted = data_of(random(3, 3, 4, 4))
    red, green, blue = painted.inputs.double().unbind(1)
    found = resized(painted, image_size=4, channels=1).inputs[:, 0]
    assert (found.double() - (0.299 * red + 0.587 * green + 0.114 * blue)).abs().max() <= 0.5 + 1e-9


def test_letters_for_a_model_of_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bright ink on dark, and with the margin as much of the picture as digits."""
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path))
    letters = [0x41, 0x47, 0x53, 0x414, 0x3A9]
    monkeypatch.setattr("metalearn.data.glyphs.choose_letters", lambda faces: letters)
    digits, plain = digits_data(), glyphs_data()
    letters_at_8 = resized(plain, image_size=8, margin=4)
    assert letters_at_8.input_shape == digits.input_shape == (1, 8, 8)
    (ours, _), (theirs, _) = letters_at_8.part("test"), digits.part("test")
    assert abs(ours.mean() - theirs.mean()) < 0.1
    assert ours.amax((1, 2, 3)).min() > 0.5 and ours.amin((1, 2, 3)).max() == 0
    assert ours.mean((0, 1))[[0, -1]].mean() > 0.1, "they reach the border, as digits do"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "image_size=0: a whole number of at least 1 is needed"),
        ({"image_size": 257}, "image_size=257: at most 256 is accepted"),
        ({"image_size": 4, "channels": 2}, r"channels=2: 1 \(grey\), 3 \(colour\) or null"),
        ({"image_size": 4, "margin": -1}, "margin=-1: a whole number of at least 0"),
        ({"image_size": 4, "margin": 4}, "margin=4: pictures are 8 pixels wide, so at most 3"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        resized(data_of(random(3, 1, 8, 8)), **settings)


@pytest.mark.parametrize(
    "inputs", [torch.zeros(3, 1, 4, 4), torch.zeros(3, 7), random(3, 1, 4, 5), random(3, 2, 4, 4)]
)
def test_other_data_are_refused(inputs: Tensor) -> None:
    with pytest.raises(SettingError, match=r"data.inputs='torch.*': square uint8 pictures of 1 or"):
        resized(data_of(inputs), image_size=4)
