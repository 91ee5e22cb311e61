"""Dropout whose masks are a function of a key, a draw and a place."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metalearn import Ensemble
from metalearn.errors import SettingError
from metalearn.models import MLP, DropBlock, Dropout, convert_dropout, set_draw
from metalearn.models.dropout import part_of_batch

ONES = torch.ones(200, 500, dtype=torch.float64)


def mask(p: float = 0.3, key: int = 0, draw: int = 0, x: Tensor = ONES, **settings: Any) -> Tensor:
    layer = Dropout(p, key=key, **settings)
    set_draw(layer, draw)
    return layer(x) != 0


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_a_share_p_is_dropped_and_the_others_are_scaled(p: float) -> None:
    y = Dropout(p, key=3)(ONES)
    kept = y != 0
    error = 4 * math.sqrt(p * (1 - p) / ONES.numel())  # four standard deviations
    assert float(kept.double().mean()) == pytest.approx(1 - p, abs=error + 1e-12)
    torch.testing.assert_close(y[kept], ONES[kept] / (1 - p), rtol=1e-6, atol=0)
    for axis in (0, 1):  # no row or column is special
        shares = kept.double().mean(axis)
        spread = math.sqrt(p * (1 - p) / kept.shape[axis])
        assert float(shares.std()) == pytest.approx(spread, rel=0.25, abs=1e-12)


@pytest.mark.parametrize("layer", [
    Dropout(0.4, key=3), Dropout(0.4, key=3, whole_channels=True), DropBlock(0.3, size=2, key=3),
])  # fmt: skip
def test_a_part_of_a_batch_has_the_masks_of_the_whole(layer: Dropout) -> None:
    x = torch.rand(7, 3, 6, 6, dtype=torch.float64) + 1
    whole = layer(x)
    for first, samples in ((0, 3), (3, 4), (6, 1)):
        with part_of_batch(first, samples):
            torch.testing.assert_close(layer(x[first : first + samples]), whole[first:][:samples])
    torch.testing.assert_close(layer(x), whole)  # it is over with the block


def test_what_does_not_have_the_samples_of_a_part_in_front_is_refused() -> None:
    with part_of_batch(2, 3), pytest.raises(SettingError, match=r"sees=\[4, 3\]: \[3, ...\] is"):
        Dropout(0.4)(torch.ones(4, 3))


def test_masks_belong_to_key_draw_and_place_alone() -> None:
    before = torch.get_rng_state()
    first = mask()
    assert torch.equal(first, mask())
    assert torch.equal(torch.get_rng_state(), before)
    for other in (mask(key=1), mask(draw=1), mask(key=65537), mask(draw=10**6)):
        both = (first & other).double().mean()
        assert float(both) == pytest.approx(0.7 * 0.7, abs=0.01), "masks are independent"


def test_neighbouring_draws_and_keys_are_not_shifted_copies() -> None:
    first = mask(p=0.5).flatten().double() - 0.5
    for other in (mask(p=0.5, draw=1), mask(p=0.5, key=1)):
        flat = other.flatten().double() - 0.5
        for lag in range(-3, 4):
            assert abs(float((first.roll(lag) * flat).mean())) < 0.25 * 0.03


def test_whole_channels() -> None:
    x = torch.ones(30, 40, 3, 3)
    kept = mask(0.5, x=x, whole_channels=True).flatten(2)
    assert torch.equal(kept.any(2), kept.all(2))
    assert float(kept.any(2).double().mean()) == pytest.approx(0.5, abs=0.06)


def test_evaluation_leaves_the_input_alone() -> None:
    assert Dropout(0.5).eval()(ONES) is ONES


def test_gradients_go_through_what_is_kept() -> None:
    x = torch.linspace(-2, 2, 40, dtype=torch.float64, requires_grad=True)
    layer = Dropout(0.25, key=1)
    y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, (y != 0).double() / 0.75)
    assert torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_members_drop_what_they_would_drop_alone(engine: Any) -> None:
    alone = [Dropout(p, key=key) for p, key in ((0.2, 5), (0.5, 5), (0.7, 11))]
    ensemble = Ensemble.from_modules(alone)
    assert len(ensemble.stacks) == 1
    for draw in (0, 7):
        set_draw(ensemble, draw)
        for layer in alone:
            set_draw(layer, draw)
        assert torch.equal(ensemble(ONES, engine=engine), torch.stack([m(ONES) for m in alone]))


def test_inside_a_vmap_over_keys() -> None:
    layer = Dropout(0.4)
    keys = torch.tensor([3, 4])
    found = vmap(lambda key: functional_call(layer, {"key": key}, (ONES,)))(keys)
    assert torch.equal(found, torch.stack([Dropout(0.4, key=int(key))(ONES) for key in keys]))


def test_layers_of_torch_are_converted() -> None:
    shared = nn.Dropout(0.2)
    network = nn.Sequential(
        nn.Linear(4, 4), shared, nn.Sequential(nn.Dropout2d(0.3).eval(), shared), nn.Dropout1d(0.4)
    )
    converted = convert_dropout(network, seed=2)
    assert isinstance(network[1], nn.Dropout), "the original is left as it is"
    first, (second, again), third = converted[1], converted[2], converted[3]
    assert first is again
    layers = [first, second, third]
    assert all(isinstance(layer, Dropout) for layer in layers)
    assert [round(float(layer.p), 6) for layer in layers] == [0.2, 0.3, 0.4]
    assert [layer.whole_channels for layer in layers] == [False, True, True]
    assert [layer.training for layer in layers] == [True, False, True]
    assert len({int(layer.key) for layer in layers}) == 3
    assert torch.equal(converted[0].weight, network[0].weight)
    assert isinstance(convert_dropout(nn.Dropout(0.1)), Dropout)


def test_the_mlp_has_dropout_after_each_hidden_layer() -> None:
    network = MLP((4,), 3, hidden=(5, 6), dropout=0.3, seed=1)
    kinds = [type(layer).__name__ for layer in network]
    block = ["Linear", "ReLU", "Dropout"]
    assert kinds == ["Flatten", *block, *block, "Linear"]
    assert len({int(layer.key) for layer in network if isinstance(layer, Dropout)}) == 2
    plain = MLP((4,), 3, hidden=(5, 6), seed=1)
    assert torch.equal(network.eval()(torch.ones(2, 4)), plain(torch.ones(2, 4)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 1.0}, r"p=1.0: a number in \[0, 1\) is needed"),
        ({"p": -0.1}, r"p=-0.1: a number in \[0, 1\)"),
        ({"p": float("nan")}, r"p=nan: a number in \[0, 1\)"),
        ({"key": -1}, "key=-1: a whole number of at least 0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Dropout(**settings)
