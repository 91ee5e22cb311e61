"""Max-pooling in blocks against a loop over tasks of torch's own, values and derivatives."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from metalearn.core.native import kernels_for, without_kernels
from metalearn.core.ops import blocks, folding, layers, pooling
from metalearn.core.ops.windows import window_of
from tests.core.ops.test_layers import EPS, assert_same, noise, over_loop, parameters, scale_of
from tests.support import oracles
from tests.support.layer_cases import both, exact_methods, norm

pytestmark = pytest.mark.skipif(
    kernels_for(torch.zeros(1)) is None, reason="needs Linux with g++ or clang++"
)

WINDOWS = {
    "2x2": window_of(2, 1, 1, 1),
    "3x3": window_of(3, 1, 1, 1),
    "pixel": window_of(1, 1, 0, 1),
}


@pytest.fixture(params=["held", "made_anew"])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns that are few enough to be kept, or so many that they are made in each pass."""
    monkeypatch.setattr(folding, "_HELD", 2**25 if request.param == "held" else 0)


@pytest.fixture(params=["whole", "task_by_task", "sample_by_sample"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a block is made of."""
    monkeypatch.setattr(blocks, "_BLOCK", 2**20 if request.param == "whole" else 1)
    monkeypatch.setattr(blocks, "_LARGE", 1 if request.param == "sample_by_sample" else 2**22)


def composite(window: Any, size: tuple[int, int]) -> Any:
    """One task by torch's own layers."""
    padding = [pad for pad, _ in window.padding]

    def function(x: Tensor, w: Tensor, gamma: Any, beta: Any) -> Tensor:
        z = F.conv2d(x, w, None, 1, padding)
        y = F.batch_norm(z, None, None, scale_of(gamma, beta), beta, True, eps=EPS)
        return F.max_pool2d(torch.relu(y), size)

    return function


@pytest.mark.usefixtures("rows", "parts")
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("affine", [(1, 1), (0, 0), (1, 0)], ids=str)
@pytest.mark.parametrize("kind", WINDOWS)
def test_values_and_two_derivatives(kind: str, affine: tuple[int, int], shared: bool) -> None:
    """With rows and columns of pictures that no window reaches."""
    window, size = WINDOWS[kind], (2, 3)
    x = 3 + (noise(1, 3, 2, 5, 7).expand(2, -1, -1, -1, -1) if shared else noise(2, 3, 2, 5, 7))
    given = [noise(2, 41, 2, *window.size, seed=1), *parameters(affine, 2, 41)]

    def ours(*v: Any) -> Tensor:
        return layers.pooled_conv_batch_norm(x, *v, window, size, eps=EPS)

    assert_same(ours, lambda *v: over_loop(composite(window, size))(x, *v), given, ())


@pytest.mark.usefixtures("rows")
def test_derivatives_by_finite_differences() -> None:
    x, window = noise(2, 2, 1, 4, 4), WINDOWS["2x2"]

    def function(*v: Tensor) -> Tensor:
        return layers.pooled_conv_batch_norm(x, *v, window, (2, 2), eps=EPS)

    given = [noise(2, 4, 1, 2, 2, seed=1), noise(2, 4, seed=2), noise(2, 4, seed=3)]
    given = [v.requires_grad_() for v in given]
    assert gradcheck(function, given)
    assert gradgradcheck(function, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels", [1, 9, 45])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 2), (15, 17)], ids=str)
def test_places_are_those_of_torch(
    size: tuple[int, int], channels: int, dtype: torch.dtype
) -> None:
    """Of windows with equal values, with none above 0, and with numbers that are none."""
    kernels = kernels_for(torch.zeros(1, dtype=dtype))
    assert kernels is not None
    z = noise(3, 2 * size[0] + 1, size[1] + 2, channels).mul(2).round().to(dtype)
    z[0, 0] = float("nan")
    z[1, : size[0]] = -1.0
    x = z.movedim(-1, 1).requires_grad_()
    expected = F.max_pool2d(x.relu(), size)
    dy = noise(*expected.shape, seed=1).to(dtype)
    (slope,) = torch.autograd.grad(expected, x, dy)
    expected, slope, dy = (t.detach().movedim(1, -1).contiguous() for t in (expected, slope, dy))
    y, codes = torch.empty_like(dy), torch.empty_like(dy, dtype=torch.uint8)
    kernels.pool(z, size, y, codes, rectify=True)
    assert torch.equal(y.nan_to_num(7.0), expected.nan_to_num(7.0))
    back, taken = torch.full_like(z, float("nan")), torch.empty_like(y)
    kernels.pool_back(dy, size, codes, back)
    kernels.pool_take(slope, size, codes, taken)
    numbers = ~expected.isnan()  # torch says of another place which of several is no number
    assert torch.equal(taken[numbers], (dy * (expected > 0))[numbers])
    assert torch.equal(back.nansum((1, 2))[1:], slope.sum((1, 2))[1:])
    assert torch.equal(back[1:], slope[1:])


POOLINGS: dict[str, tuple[Any, bool]] = {
    "plain": (lambda: nn.MaxPool2d(2), True),
    "oblong": (lambda: nn.MaxPool2d((2, 3)), True),
    "overlapping": (lambda: nn.MaxPool2d(3, 2), False),
    "apart": (lambda: nn.MaxPool2d(2, 3), False),
    "padded": (lambda: nn.MaxPool2d(2, padding=1), False),
    "dilated": (lambda: nn.MaxPool2d(2, dilation=2), False),
    "rounded_up": (lambda: nn.MaxPool2d(2, ceil_mode=True), False),
    "mean": (lambda: nn.AvgPool2d(2), False),
}


@exact_methods
@pytest.mark.parametrize("kind", POOLINGS)
def test_runs_that_end_in_a_pooling(
    kind: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, expected = POOLINGS[kind]
    calls = []

    def counting(*given: Any, **settings: Any) -> Tensor:
        calls.append(given)
        return pooled(*given, **settings)

    pooled = layers.pooled_conv_batch_norm
    monkeypatch.setattr(layers, "pooled_conv_batch_norm", counting)
    stack = [nn.Conv2d(2, 19, 3, padding=1), norm(19), nn.ReLU(), make(), nn.Conv2d(19, 3, 1)]
    module = nn.Sequential(*stack, norm(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    both(oracles.classification(oracles.draw(module), (2, 6, 7)), method=method)
    assert bool(calls) == expected


def test_third_derivatives_are_refused() -> None:
    x, w = noise(1, 2, 1, 4, 4), noise(1, 4, 1, 2, 2, seed=1).requires_grad_()
    y = layers.pooled_conv_batch_norm(x, w, None, None, WINDOWS["2x2"], (2, 2), eps=EPS)
    (first,) = torch.autograd.grad(y.exp().sum(), w, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        torch.autograd.grad(first.exp().sum(), w, create_graph=True)


class Marked(Tensor):
    """Which has no kernels."""


@pytest.mark.parametrize("kind", ["without", "negated", "subclass"])
def test_derivatives_of_slopes_that_have_no_kernels(kind: str) -> None:
    """The forward pass had them; the backward passes give the same by torch's own operations."""
    x, given = noise(2, 3, 2, 5, 7), [noise(2, 41, 2, 3, 3, seed=1).requires_grad_()]
    slope = noise(2, 3, 41, 2, 2, seed=2)

    def found(slope: Tensor, without: bool = False) -> list[Tensor]:
        y = layers.pooled_conv_batch_norm(x, *given, None, None, WINDOWS["3x3"], (2, 3), eps=EPS)
        with without_kernels() if without else nullcontext():
            first = torch.autograd.grad(y, given, slope, create_graph=True)
            second = torch.autograd.grad((first[0] * first[0]).sum(), given)
        return [first[0].detach(), second[0]]

    others = {
        "without": slope,
        "negated": torch.complex(slope, -slope).conj().imag,
        "subclass": slope.as_subclass(Marked),
    }
    for a, e in zip(found(others[kind], kind == "without"), found(slope)):
        torch.testing.assert_close(a.as_subclass(Tensor), e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("names", [("0.weight",), ("1.weight",), ("1.bias",)], ids=str)
def test_parameters_of_a_subclass(names: tuple[str, ...]) -> None:
    given = [noise(41, 2, 3, 3), noise(41), noise(41)]
    marked = {"0.weight": 0, "1.weight": 1, "1.bias": 2}
    for name in names:
        given[marked[name]] = given[marked[name]].as_subclass(Marked)
    x = noise(1, 3, 2, 5, 7)
    assert pooling.can_pool(x, *map(noise_like, given), (2, 2))
    assert not pooling.can_pool(x, *given, (2, 2))


def noise_like(v: Tensor) -> Tensor:
    return noise(*v.shape)
