"""Shifts, mirror images and turns: closed forms, members as when alone, how often what happens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metalearn.data import Augmentation, augment
from metalearn.data.augmentation import mirror, rotate, shift
from metalearn.errors import SettingError

ALL = Augmentation(max_shift=2, flip=True, rotate=25.0)


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.1


def moved(picture: Tensor, down: int, right: int) -> Tensor:
    """By slices of one picture ``[C, H, W]``, zeros where nothing lands."""
    height, width = picture.shape[-2:]
    result = torch.zeros_like(picture)
    for i, j in itertools.product(range(height), range(width)):
        if 0 <= i - down < height and 0 <= j - right < width:
            result[:, i, j] = picture[:, i - down, j - right]
    return result


# --- closed forms ---------------------------------------------------------------------------


def test_a_shift_is_a_slice() -> None:
    inputs = pictures(1, 2, 5, 6)
    up_left = shift(inputs, torch.tensor([-1]), torch.tensor([-2]), reach=2)
    assert torch.equal(up_left[..., :4, :4], inputs[..., 1:, 2:])
    assert up_left[..., 4:, :].abs().max() == 0 == up_left[..., 4:].abs().max()


def test_every_shift_of_every_sample() -> None:
    offsets = list(itertools.product(range(-3, 4), repeat=2))
    inputs = pictures(len(offsets), 2, 5, 4)
    down, right = torch.tensor(offsets).unbind(1)
    found = shift(inputs, down, right, reach=3)
    for one, picture, (d, r) in zip(found, inputs, offsets):
        assert torch.equal(one, moved(picture, d, r))


def test_a_mirror_image_of_a_mirror_image_is_the_picture() -> None:
    inputs, chosen = pictures(4, 3, 2, 5), torch.tensor([True, False, True, False])
    once = mirror(inputs, chosen)
    assert torch.equal(once[1::2], inputs[1::2])
    assert once[0, 1, 0].tolist() == inputs[0, 1, 0].tolist()[::-1]
    assert torch.equal(mirror(once, chosen), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quarter_turns_are_exact(dtype: torch.dtype) -> None:
    inputs = pictures(5, 2, 7, 7).to(dtype)
    turns = (0, 1, 2, 3, -1)
    found = rotate(inputs, torch.tensor([90.0 * t for t in turns]))
    assert found.dtype == dtype
    for one, picture, turn in zip(found, inputs, turns):
        expected = torch.rot90(picture, turn, dims=(-2, -1))
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=0)


def test_half_a_turn_of_an_oblong_picture() -> None:
    inputs = pictures(1, 1, 4, 9)
    found = rotate(inputs, torch.tensor([180.0]))
    torch.testing.assert_close(found, inputs.flip(-1, -2), atol=1e-5, rtol=0)


def test_a_turn_by_bilinear_interpolation_of_plain_loops() -> None:
    picture, degrees = pictures(1, 1, 5, 8)[0, 0].double(), 33.0
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    expected = torch.zeros(5, 8, dtype=torch.float64)
    for i, j in itertools.product(range(5), range(8)):
        y, x = i - 2.0, j - 3.5
        row, column = sin * x + cos * y + 2.0, cos * x - sin * y + 3.5
        for a, b in itertools.product(range(5), range(8)):
            weight = max(0.0, 1 - abs(row - a)) * max(0.0, 1 - abs(column - b))
            expected[i, j] += weight * picture[a, b]
    found = rotate(picture[None, None], torch.tensor([degrees]))[0, 0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


# --- as it is drawn -------------------------------------------------------------------------


def test_nothing_is_done_by_default() -> None:
    inputs = pictures(2, 3, 1, 4, 4)
    assert augment(inputs, Augmentation(), seeds=[0, 1], step=3) is inputs
    assert not Augmentation().active and ALL.active


def test_shifts_are_even_and_reach_all_offsets() -> None:
    count = 4500
    inputs = torch.zeros(count, 1, 5, 5)
    inputs[:, :, 2, 2] = 1
    found = augment(inputs, Augmentation(max_shift=1), seeds=[0], step=0)
    assert torch.equal(found.sum((1, 2, 3)), torch.ones(count))
    shares = found[:, 0, 1:4, 1:4].mean(0) * 9
    assert (shares - 1).abs().max() < 5 * (8 / count) ** 0.5


def test_half_of_the_pictures_are_mirrored() -> None:
    inputs = pictures(2000, 1, 2, 3)
    found = augment(inputs, Augmentation(flip=True), seeds=[3], step=1)
    same = (found == inputs).flatten(1).all(1)
    mirrored = (found == inputs.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert abs(same.float().mean() - 0.5) < 5 * 0.5 / 2000**0.5


def test_turns_stay_within_their_bound_and_go_both_ways() -> None:
    """A dot at the right of the centre rises by the sine of the angle."""
    inputs = torch.zeros(400, 1, 41, 41)
    inputs[:, 0, 20, 35:38] = 1
    found = augment(inputs, Augmentation(rotate=30.0), seeds=[0], step=0)[:, 0]
    rows = torch.arange(41.0)
    height = 20 - (found.sum(2) * rows).sum(1) / found.sum((1, 2))
    angle = torch.rad2deg(torch.asin(height / 16))
    assert angle.abs().max() < 30.5
    assert angle.min() < -28 and angle.max() > 28 and abs(angle.mean()) < 5 * 30 / 3**0.5 / 20


def test_steps_samples_and_seeds_draw_afresh() -> None:
    inputs = pictures(1, 1, 9, 9).expand(6, -1, -1, -1)
    only = Augmentation(rotate=90.0)
    found = [augment(inputs, only, seeds=[seed], step=step) for seed in (0, 1) for step in (0, 1)]
    assert len({picture.numpy().tobytes() for batch in found for picture in batch}) == 24
    assert torch.equal(augment(inputs, only, seeds=[1], step=1), found[3])


SETTINGS = [Augmentation(max_shift=1), Augmentation(flip=True), Augmentation(rotate=40.0), ALL]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_run_alone_sees_the_pictures_of_its_member(setting: Augmentation) -> None:
    seeds, inputs = [5, 2**64 - 1, 5, 0], pictures(4, 7, 3, 8, 6)
    found = augment(inputs, setting, seeds=seeds, step=11)
    assert found.shape == inputs.shape
    for member, seed in enumerate(seeds):
        alone = augment(inputs[member], setting, seeds=[seed], step=11)
        assert torch.equal(found[member], alone)
        first = augment(inputs[member, :3], setting, seeds=[seed], step=11)
        assert torch.equal(first, alone[:3]), "the size of the batch changes no picture"


def test_members_that_share_a_batch() -> None:
    inputs = pictures(6, 1, 5, 5)
    found = augment(inputs, ALL, seeds=[1, 2], step=0)
    apart = augment(torch.stack([inputs, inputs]), ALL, seeds=[1, 2], step=0)
    assert torch.equal(found, apart) and not torch.equal(found[0], found[1])
    assert augment(inputs, ALL, seeds=[1, 1], step=0).shape == inputs.shape


def test_inputs_and_global_generators_are_left_alone() -> None:
    inputs = pictures(3, 1, 5, 5)
    before, state = inputs.clone(), torch.get_rng_state()
    augment(inputs, ALL, seeds=[0], step=0)
    assert torch.equal(inputs, before) and torch.equal(torch.get_rng_state(), state)


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_shift": -1}, "max_shift=-1: a whole number of at least 0 is needed"),
        ({"max_shift": 0.5}, "max_shift=0.5: a whole number"),
        ({"flip": 1}, "flip=1: true or false is needed"),
        ({"rotate": -1.0}, "rotate=-1.0: degrees from 0 to 180 are needed"),
        ({"rotate": 181}, "rotate=181: degrees"),
        ({"rotate": float("nan")}, "rotate=nan: degrees"),
        ({"rotate": True}, "rotate=True: degrees"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Augmentation(**settings)


@pytest.mark.parametrize(
    ("inputs", "seeds", "step", "message"),
    [
        (torch.zeros(3, 4), [0], 0, r"inputs='torch.float32 \[3, 4\]': float pictures \[B, C, H"),
        (torch.zeros(2, 1, 8, 8).byte(), [0], 0, r"inputs='torch.uint8 \[2, 1, 8, 8\]'"),
        (torch.zeros(2, 1, 8, 8), [], 0, r"seeds=\[\]: at least one seed is needed"),
        (torch.zeros(2, 1, 8, 8), [-1], 0, "seed=-1: a whole number"),
        (torch.zeros(3, 2, 1, 8, 8), [0, 1], 0, r"seeds=\[0, 1\]: one a member is needed, 3 of"),
        (torch.zeros(2, 1, 8, 2), [0], 0, "max_shift=2: pictures are 2 pixels wide, so at most 1 "),
        (torch.zeros(2, 1, 8, 8), [0], -1, "step=-1: a whole number of at least 0 is needed"),
    ],
)  # fmt: skip
def test_batches_that_do_not_fit(
    inputs: Tensor, seeds: Sequence[int], step: int, message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        augment(inputs, ALL, seeds=seeds, step=step)
