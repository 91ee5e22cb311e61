"""Max-pooling by places, and activations that join a norm or follow a pooling, against torch's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from metalearn.core.native import kernels_for, without_kernels
from metalearn.core.ops import layers, sequence
from metalearn.core.ops.max_pool import can_max_pool, max_pool
from metalearn.core.ops.windows import tiles_of
from tests.core.ops.test_layers import noise
from tests.support import oracles
from tests.support.layer_cases import both, exact_methods, norm

needs_kernels = pytest.mark.skipif(
    kernels_for(torch.zeros(1)) is None, reason="needs Linux with g++ or clang++"
)
rectified = pytest.mark.parametrize("rectify", [False, True], ids=["plain", "relu"])


def plain(x: Tensor, size: tuple[int, int], rectify: bool) -> Tensor:
    x = x.movedim(-1, 1)
    return F.max_pool2d(x.relu() if rectify else x, size).movedim(1, -1)


def thrice(function: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Values, and derivatives of three orders."""
    found = [function(x)]
    for order in (3, 2, 2):
        found += torch.autograd.grad((found[-1] ** order).sum(), x, create_graph=True)
    return found


@needs_kernels
@rectified
@pytest.mark.parametrize("channels", [1, 9, 45])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 2), (15, 17)], ids=str)
def test_values_and_three_derivatives(size: tuple[int, int], channels: int, rectify: bool) -> None:
    """With rows and columns that no window reaches; equal values go to the first of a window."""
    x = noise(3, 2 * size[0] + 1, size[1] + 2, channels)
    x[0] = x[0].mul(2).round()
    x[1, : size[0]] = -1.0
    found = thrice(lambda x: max_pool(x, size, rectify=rectify), x.clone().requires_grad_())
    expected = thrice(lambda x: plain(x, size, rectify), x.clone().requires_grad_())
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@needs_kernels
@rectified
def test_derivatives_by_finite_differences(rectify: bool) -> None:
    x = noise(2, 4, 5, 3).requires_grad_()
    assert gradcheck(lambda x: max_pool(x, (2, 2), rectify=rectify), x)
    assert gradgradcheck(lambda x: max_pool(x, (2, 2), rectify=rectify), x)


@needs_kernels
@rectified
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_numbers_that_are_not_finite(value: float, rectify: bool) -> None:
    x = noise(2, 4, 4, 9)
    x[0, 0, 0], x[1] = value, value
    assert torch.equal(
        max_pool(x, (2, 2), rectify=rectify).nan_to_num(7.0),
        plain(x, (2, 2), rectify).nan_to_num(7.0),
    )


class Marked(Tensor):
    """Which has no kernels."""


@needs_kernels
@pytest.mark.parametrize("kind", ["without", "negated", "subclass", "transposed"])
def test_slopes_that_have_no_kernels(kind: str) -> None:
    x, slope = noise(2, 5, 7, 9).requires_grad_(), noise(2, 2, 3, 9, seed=1)

    def found(slope: Tensor) -> list[Tensor]:
        y = max_pool(x, (2, 2))
        with without_kernels() if kind == "without" else nullcontext():
            (first,) = torch.autograd.grad(y, x, slope.requires_grad_(), create_graph=True)
            (second,) = torch.autograd.grad((first * first).sum(), slope)
        return [first.detach().as_subclass(Tensor), second.as_subclass(Tensor)]

    others = {
        "without": slope,
        "negated": torch.complex(slope, -slope).conj().imag,
        "subclass": slope.as_subclass(Marked),
        "transposed": slope.mT.contiguous().mT,
    }
    for a, e in zip(found(others[kind].detach()), found(slope.clone())):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@needs_kernels
def test_who_is_pooled_by_torch() -> None:
    x = noise(2, 9, 4, 4)
    assert can_max_pool(x, (2, 2)) and can_max_pool(x.clone().requires_grad_(), (3, 85))
    assert not can_max_pool(x.as_subclass(Marked), (2, 2))
    assert not can_max_pool(x.half(), (2, 2))
    assert not can_max_pool(x, (16, 16))
    with without_kernels():
        assert not can_max_pool(x, (2, 2))


ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], float | None]] = {
    "relu": (nn.ReLU, 0.0),
    "leaky": (lambda: nn.LeakyReLU(0.1), 0.1),
    "leaky_in_place": (lambda: nn.LeakyReLU(0.3, inplace=True), 0.3),
    "closed": (lambda: nn.LeakyReLU(0.0), None),
    "open": (lambda: nn.LeakyReLU(1.0), 1.0),
    "steep": (lambda: nn.LeakyReLU(2.0), 2.0),
    "falling": (lambda: nn.LeakyReLU(-0.5), None),
    "smooth": (nn.Softplus, None),
}
POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "side_by_side": lambda: nn.MaxPool2d(2),
    "oblong": lambda: nn.MaxPool2d((3, 2)),
    "overlapping": lambda: nn.MaxPool2d(3, 2),
    "padded": lambda: nn.MaxPool2d(2, padding=1),
    "rounded_up": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "stride_of_its_size": lambda: _without_stride(nn.MaxPool2d(2)),
    "list_of_one": lambda: nn.MaxPool2d([2]),  # type: ignore[arg-type]
    "numbers_of_numpy": lambda: nn.MaxPool2d(np.int64(2), np.int64(2)),
    "mean": lambda: nn.AvgPool2d(2),
    "none": nn.Identity,
}


def _without_stride(pool: nn.MaxPool2d) -> nn.MaxPool2d:
    pool.stride = None  # type: ignore[assignment]
    return pool


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_slopes_of_activations(kind: str) -> None:
    make, leak = ACTIVATIONS[kind]
    assert layers.leak_of(make()) == leak


@exact_methods
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_runs_with_activations(kind: str, pooling: str, method: str) -> None:
    """Behind a norm, in front of a pooling, and before another one."""
    activation, pool = ACTIVATIONS[kind][0], POOLINGS[pooling]
    stack = [
        nn.Conv2d(2, 9, 3, padding=1), norm(9), activation(), pool(),
        nn.Conv2d(9, 9, 3, padding=1), norm(9), activation(), nn.Conv2d(9, 9, 1),
        nn.InstanceNorm2d(9, affine=True), activation(), nn.LeakyReLU(0.2), nn.Identity(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 2),
    ]  # fmt: skip
    module = oracles.draw(nn.Sequential(*stack))
    both(oracles.classification(module, (2, 6, 7)), method=method)


class Residual(nn.Module):
    """A pooling that is the first of its run, of a sum that the run has not made."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(2, 9, 3, padding=1), norm(9))
        self.after = nn.Sequential(activation, nn.MaxPool2d(2))
        self.head = nn.Linear(81, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.main(x)
        after: Tensor = self.after(y)
        z: Tensor = self.head(after.flatten(1)) + y.sum((1, 2, 3))[:, None]
        return z


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_a_pooling_at_the_start_of_a_run(kind: str) -> None:
    """In place it changes what the module reads afterwards, as by torch."""
    module = oracles.draw(Residual(ACTIVATIONS[kind][0]()))
    both(oracles.classification(module, (2, 6, 7)))


@needs_kernels
@pytest.mark.parametrize(
    ("stack", "leaks", "pooled"),
    [
        ([norm(9), nn.LeakyReLU(0.1), nn.Conv2d(9, 9, 1)], [0.1], []),
        ([norm(9), nn.ReLU(), nn.Conv2d(9, 9, 1)], [1.0], []),  # a convolution takes it
        ([norm(9), nn.ReLU(), nn.MaxPool2d(2)], [1.0], [0.0]),
        ([norm(9), nn.LeakyReLU(0.1), nn.MaxPool2d(2)], [1.0], [0.1]),
        ([norm(9), nn.MaxPool2d(2), nn.ReLU()], [1.0], [1.0]),
        ([norm(9), nn.Softplus(), nn.MaxPool2d(2)], [1.0], [1.0]),
        ([norm(9), nn.ReLU(), nn.Identity(), nn.MaxPool2d(2)], [0.0], [1.0]),
        ([nn.Conv2d(9, 9, 1), norm(9), nn.LeakyReLU(0.1)], [1.0], []),  # its input is kept
        ([nn.Conv2d(9, 9, 1), norm(9), nn.LeakyReLU(0.1), nn.Identity()], [1.0], []),
        ([nn.Conv2d(9, 9, 1), norm(9), nn.LeakyReLU(0.1, inplace=True)], [0.1], []),
        ([nn.Conv2d(9, 9, 1), norm(9), nn.LeakyReLU(0.1), nn.GELU()], [0.1], []),
        ([norm(9), nn.ReLU(), nn.MaxPool2d(3, 2)], [0.0], [1.0]),  # windows overlap
    ],
    ids=str,
)
def test_who_takes_an_activation(
    stack: list[nn.Module], leaks: list[float], pooled: list[float], monkeypatch: Any
) -> None:
    found: dict[str, list[float]] = {"batch_norm": [], "max_pool2d": []}

    def noting(name: str, own: Any) -> Any:
        def call(*given: Any, **settings: Any) -> Any:
            found[name].append(settings["leak"])
            return own(*given, **settings)

        return call

    for name in found:
        monkeypatch.setattr(layers, name, noting(name, getattr(layers, name)))
    parameters = [
        {name: value.detach()[None] for name, value in layer.named_parameters()} for layer in stack
    ]
    x = noise(1, 3, 9, 4, 4).float().requires_grad_()  # else norms of data are folded
    taken, y = sequence._run_over_tasks(stack, parameters, x)
    assert taken == len(stack)
    assert found == {"batch_norm": leaks, "max_pool2d": pooled}
    expected = nn.Sequential(*stack)(x[0])
    torch.testing.assert_close(y[0], expected, rtol=1e-4, atol=1e-5)


WRITTEN: dict[str, list[nn.Module]] = {
    "leaky": [nn.Conv2d(2, 9, 3, padding=1), norm(9), nn.LeakyReLU(0.1)],
    "leaky_and_nothing": [
        nn.Conv2d(2, 9, 3, padding=1), norm(9), nn.LeakyReLU(0.1), nn.Identity(),
    ],
    "pooled": [nn.Conv2d(2, 9, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
    "pooled_by_torch": [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
    "overlapping": [nn.Conv2d(2, 9, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)],
    "leaky_pooled": [
        nn.Conv2d(2, 9, 3, padding=1), norm(9), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
    ],
    "leaky_pooled_by_torch": [norm(2), nn.LeakyReLU(0.1), nn.MaxPool2d(2)],
}  # fmt: skip


class WritesInPlace(nn.Module):
    """As ``out += shortcut`` of residual networks."""

    def __init__(self, stack: list[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(*stack)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        y += y.detach().mean()
        y = torch.nn.functional.relu6(y, inplace=True)
        return y.mean((2, 3))[:, :2]


@exact_methods
@pytest.mark.parametrize("ways", ["kernels", "torch"])
@pytest.mark.parametrize("kind", WRITTEN)
def test_results_that_are_written_to(kind: str, ways: str, method: str) -> None:
    module = oracles.draw(WritesInPlace(WRITTEN[kind]))
    with without_kernels() if ways == "torch" else nullcontext():
        both(oracles.classification(module, (2, 6, 7)), method=method)


def test_a_view_as_another_of_what_was_pooled() -> None:
    """Whose memory is channels-last now."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(2, 9, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
            self.head = nn.Linear(81, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.body(x)
            z: Tensor = self.head(y.view_as(torch.empty(len(y), 81)))
            return z * z.mean((0, 1), keepdim=True).view_as(z.new_empty(()))

    both(oracles.classification(oracles.draw(Net()), (2, 6, 7)))


@needs_kernels
def test_several_cotangents_at_once() -> None:
    x = noise(2, 4, 4, 9).requires_grad_()
    y = max_pool(x, (2, 2))
    slopes = noise(3, *y.shape, seed=1)
    (found,) = torch.autograd.grad(y, x, slopes, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(y, x, slope, retain_graph=True)[0] for slope in slopes]
    torch.testing.assert_close(found, torch.stack(expected))


@needs_kernels
def test_tangents_are_left_to_torch() -> None:
    x = noise(1, 9, 4, 4)
    assert can_max_pool(x, (2, 2))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, noise(1, 9, 4, 4, seed=1))
        assert not can_max_pool(dual, (2, 2))


@pytest.mark.parametrize("size", [2.0, (2, 2, 2), "2"], ids=str)
def test_pools_that_torch_refuses_are_left_to_it(size: Any) -> None:
    assert tiles_of(nn.MaxPool2d(size), 4, 4) is None
    assert tiles_of(nn.MaxPool2d(2, padding="valid"), 4, 4) is None  # type: ignore[arg-type]
