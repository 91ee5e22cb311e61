"""Affine changes of pictures against a dense oracle in float64, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from metalearn.data import AffineRanges
from metalearn.data.affine import change_pictures, warp
from metalearn.data.augmentation import rotate
from metalearn.errors import SettingError


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def oracle(picture: np.ndarray, ranges: AffineRanges, draws: list[float]) -> np.ndarray:
    """One grey picture, pixel by pixel, from the forward map of the docstring."""
    u = [2 * draw - 1 for draw in draws]
    angle = math.radians(ranges.rotate * u[0])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    sides = np.diag([1 + ranges.scale * u[1], 1 + ranges.scale * u[2]])
    forward = turn @ np.array([[1, ranges.shear * u[3]], [0, 1]]) @ sides
    height, width = picture.shape
    shift = ranges.shift * np.array([u[4] * width, u[5] * height])
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    found = np.zeros_like(picture)
    for i in range(height):
        for j in range(width):
            x, y = np.linalg.solve(forward, np.array([j, i]) - centre - shift) + centre
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x), math.floor(x) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        share = (1 - abs(y - row)) * (1 - abs(x - column))
                        found[i, j] += share * picture[row, column]
    return found


ALL = {"rotate": 40.0, "scale": 0.3, "shear": 0.4, "shift": 0.2}


@pytest.mark.parametrize("shape", [(7, 7), (6, 9), (9, 5), (1, 1)])
@pytest.mark.parametrize("given", [ALL, *({name: value} for name, value in ALL.items())])
def test_as_the_oracle_has_it(shape: tuple[int, int], given: dict[str, float]) -> None:
    ranges = AffineRanges(**given)
    inputs, draws = pictures(3, 1, *shape), pictures(3, 6, seed=1)
    found = change_pictures(inputs, ranges, draws)
    for picture, draw, changed in zip(inputs, draws, found):
        expected = oracle(picture[0].numpy(), ranges, draw.tolist())
        np.testing.assert_allclose(changed[0].numpy(), expected, atol=1e-12)


def test_channels_are_changed_alike() -> None:
    inputs, draws = pictures(2, 3, 6, 6), pictures(2, 6, seed=1)
    whole = change_pictures(inputs, AffineRanges(**ALL), draws)
    for channel in range(3):
        alone = change_pictures(inputs[:, channel : channel + 1], AffineRanges(**ALL), draws)
        assert torch.allclose(whole[:, channel : channel + 1], alone, atol=1e-14)


def test_a_turn_alone_is_that_of_the_other_augmentation() -> None:
    inputs, draws = pictures(4, 2, 8, 8), torch.full((4, 6), 0.5, dtype=torch.float64)
    draws[:, 0] = torch.tensor([0.0, 0.25, 0.5, 1.0])
    found = change_pictures(inputs, AffineRanges(rotate=30), draws)
    expected = rotate(inputs, torch.tensor([30.0, 15.0, 0.0, -30.0], dtype=torch.float64))
    assert torch.allclose(found, expected, atol=1e-12)


def test_draws_of_one_half_and_ranges_of_zero_leave_pictures_as_they_are() -> None:
    inputs = pictures(2, 1, 5, 7)
    middle = torch.full((2, 6), 0.5, dtype=torch.float64)
    same = change_pictures(inputs, AffineRanges(**ALL), middle)
    assert torch.allclose(same, inputs, atol=1e-12)
    assert change_pictures(inputs, AffineRanges(), pictures(2, 6)) is inputs


def test_whole_pixels_are_moved_exactly() -> None:
    inputs = pictures(1, 1, 4, 4)
    none = torch.eye(2, dtype=torch.float64)[None]
    moved = warp(inputs, none, torch.tensor([[1.0, 2.0]], dtype=torch.float64))
    assert torch.allclose(moved[..., 2:, 1:], inputs[..., :2, :3], atol=1e-12)
    assert not moved[..., :2, :].any() and not moved[..., 0].any()


@pytest.mark.parametrize("name", ["rotate", "scale", "shear", "shift"])
@pytest.mark.parametrize("value", [-0.1, 200.0, True, "abc", None, math.nan])
def test_ranges_out_of_bounds_are_refused(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"^{name}=.*a number from 0 to"):
        AffineRanges(**{name: value})


def test_what_are_no_pictures_or_draws_is_refused() -> None:
    with pytest.raises(SettingError, match="float pictures"):
        change_pictures(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), AffineRanges(), pictures(2, 6))
    with pytest.raises(SettingError, match=r"draws=\[3, 6\]: \[2, 6\] are needed"):
        change_pictures(pictures(2, 1, 4, 4), AffineRanges(), pictures(3, 6))
