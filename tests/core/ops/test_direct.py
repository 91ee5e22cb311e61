"""Convolutions without columns against those with columns: values and two derivatives."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradgradcheck

from metalearn.core.ops import convolution as convolutions
from metalearn.core.ops import direct
from metalearn.core.ops.convolution import convolution
from metalearn.core.ops.direct import Direct, direct_for
from metalearn.core.ops.windows import Window, window_of
from tests.support import oracles

WINDOWS = {
    "same": window_of(3, 1, 1, 1),
    "halving": window_of(3, 2, 1, 1),
    "dilated": window_of((2, 3), 1, (1, 0), 2),
    "valid": window_of((3, 2), (1, 2), 0, 1),
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=oracles.generator(seed), dtype=torch.float64)


@pytest.fixture(params=["whole", "sample_by_sample", "weights_by_columns"])
def taken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small pictures are, and in float64, in which torch has another way."""
    monkeypatch.setattr(direct, "_WORTH", 0)
    monkeypatch.setattr(direct, "_TYPES", {torch.float64})
    monkeypatch.setattr(direct, "_BLOCK", 1 if request.param == "sample_by_sample" else 2**20)
    monkeypatch.setattr(direct, "_MANY", 0 if request.param == "weights_by_columns" else math.inf)
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no convolutions of large pictures here")


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether it was taken, each time that this was asked."""
    asked: list[bool] = []

    def noted(*given: Any) -> Direct | None:
        found = direct_for(*given)
        asked.append(found is not None)
        return found

    monkeypatch.setattr(convolutions, "direct_for", noted)
    return asked


def operands(window: Window, bias: bool) -> list[Tensor]:
    shapes = [(2, 3, 6, 5, 2), (2, 4, math.prod(window.size) * 2), *([(2, 1, 4)] if bias else [])]
    return [noise(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]


def found(window: Window, rectify: bool, bias: bool, wanted: tuple[int, ...]) -> list[Tensor]:
    """The value, first gradients, and those of a function of some of them."""
    given = operands(window, bias)
    z = convolution(given[0], given[1], given[2] if bias else None, window, rectify=rectify)
    slope = noise(*z.shape, seed=9).requires_grad_()
    first = torch.autograd.grad(z, given, slope, create_graph=True)
    total = sum((first[i] * (i + first[i])).sum() for i in wanted if i < len(first))
    second = torch.autograd.grad(total, [slope, *given], allow_unused=True)
    return [v.detach() for v in (z, *first, *second) if v is not None]


@pytest.mark.usefixtures("taken")
@pytest.mark.parametrize(
    "wanted", [c for n in (1, 2, 3) for c in itertools.combinations(range(3), n)], ids=str
)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("rectify", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize("window", WINDOWS)
def test_they_are_those_by_columns(
    window: str,
    rectify: bool,
    bias: bool,
    wanted: tuple[int, ...],
    ways: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not bias and wanted == (2,):
        pytest.skip("no gradient is wanted")
    given = WINDOWS[window], rectify, bias, wanted
    ours = found(*given)
    assert ways and all(ways)
    ways.clear()
    monkeypatch.setattr(direct, "_WORTH", math.inf)
    theirs = found(*given)
    assert ways and not any(ways)
    assert len(ours) == len(theirs)
    for a, e in zip(ours, theirs):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10 * float(e.abs().max()))


@pytest.mark.usefixtures("taken")
def test_second_derivatives_by_finite_differences(ways: list[bool]) -> None:
    window = WINDOWS["halving"]
    x, weight, bias = operands(window, True)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return convolution(x, weight, bias, window)

    assert gradgradcheck(function, (x[:1], weight[:1], bias[:1]))
    assert ways and all(ways)


@pytest.mark.parametrize(
    ("side", "dtype", "window", "expected"),
    [
        (84, torch.float32, WINDOWS["same"], True),
        (84, torch.float64, WINDOWS["same"], False),
        (14, torch.float32, WINDOWS["same"], False),
        (84, torch.float32, window_of(1, 1, 0, 1), False),
        (84, torch.float32, window_of(2, 1, "same", 1), False),
    ],
    ids=["large", "float64", "small", "pixel", "uneven_border"],
)
def test_large_pictures_are_taken(
    side: int, dtype: torch.dtype, window: Window, expected: bool
) -> None:
    shape = (2, 4, side, side, 16)
    way = direct.direct_for(torch.zeros(0, dtype=dtype), window, False, shape, 16)
    assert (way is not None) == (expected and torch.backends.mkldnn.is_available())


LAYERS: dict[str, tuple[int, int, int, int, Window, bool]] = {
    "3x3_of_3x3": (25, 3, 512, 512, window_of(3, 1, 1, 1), False),
    "pixels_apart": (75, 21, 64, 128, window_of(1, 2, 0, 1), False),
    "whole_picture": (100, 7, 64, 128, window_of(7, 1, 0, 1), False),
    "patches": (25, 80, 3, 192, window_of(16, 16, 0, 1), False),
    "side_by_side": (25, 84, 64, 64, window_of(2, 2, 0, 1), False),
    "many_outputs": (5, 21, 320, 320, window_of(3, 1, 1, 1), False),
    "more_outputs": (5, 21, 64, 160, window_of(3, 1, 1, 1), False),
    "few_positions": (5, 10, 64, 128, window_of(3, 1, 1, 1), False),
    "no_outputs": (5, 84, 32, 0, window_of(3, 1, 1, 1), False),
    "first": (25, 84, 3, 32, window_of(3, 1, 1, 1), True),
    "second": (25, 42, 32, 32, window_of(3, 1, 1, 1), True),
    "stem": (5, 84, 3, 64, window_of(7, 2, 3, 1), True),
    "halving": (25, 42, 32, 32, window_of(3, 2, 1, 1), True),
    "dilated": (25, 42, 32, 32, window_of(3, 1, 2, 2), True),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_that_are_faster_are_taken(layer: str) -> None:
    samples, side, channels, outputs, window, expected = LAYERS[layer]
    shape = (4, samples, side, side, channels)
    way = direct.direct_for(torch.zeros(0), window, False, shape, outputs)
    assert (way is not None) == (expected and torch.backends.mkldnn.is_available())


@pytest.mark.parametrize(("channels", "outputs", "expected"), [(16, 16, True), (32, 32, False)])
def test_cotangents_of_few_weights_are_taken(channels: int, outputs: int, expected: bool) -> None:
    way = direct.Direct(window_of(3, 1, 1, 1), False, (4, 5, 42, 42, channels), outputs)
    assert way.weighs == expected


def test_large_pictures_in_float32() -> None:
    """As they come, against columns in float64."""
    window, results = WINDOWS["same"], []
    for dtype in (torch.float32, torch.float64):
        x, weight = noise(2, 2, 40, 40, 16), noise(2, 8, 9 * 16, seed=1)
        given = [v.to(dtype).requires_grad_() for v in (x, weight)]
        assert (direct.direct_for(given[1], window, False, x.shape, 8) is not None) == (
            dtype == torch.float32 and torch.backends.mkldnn.is_available()
        )
        z = convolution(*given, None, window)
        slope = noise(*z.shape, seed=2).to(dtype).requires_grad_()
        first = torch.autograd.grad(z, given, slope, create_graph=True)
        total = sum((g * g).sum() for g in first)
        results.append([z, *first, *torch.autograd.grad(total, [slope, *given])])
    for a, e in zip(*results):
        assert float((a.detach().double() - e.detach()).norm() / e.detach().norm()) < 3e-6


def test_a_gate_that_is_negated() -> None:
    """Of which kernels would read the memory."""
    window, results = WINDOWS["same"], []
    way = direct.direct_for(torch.zeros(0), window, True, (1, 1, 32, 32, 32), 32)
    assert torch.backends.mkldnn.is_available() == (way is not None and not way.weighs)
    x, weight = noise(1, 1, 32, 32, 32).float(), noise(1, 32, 9 * 32, seed=1).float()
    slope, u = (noise(1, 1, 32, 32, 32, seed=s).float() for s in (2, 3))
    for pictures in (x, torch._neg_view(-x)):
        given = [v.detach().requires_grad_() for v in (pictures, weight, slope)]
        z = convolution(*given[:2], None, window, rectify=True)
        (first,) = torch.autograd.grad(z, given[0], given[2], create_graph=True)
        results.append(torch.autograd.grad(first, given[1:], u))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
