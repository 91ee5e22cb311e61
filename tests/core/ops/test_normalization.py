"""Normalisation in closed form against its definition, in value and two derivatives."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from metalearn.core.ops.normalization import normalize
from tests.support import oracles

pytestmark = pytest.mark.usefixtures("both_ways")


class Case(NamedTuple):
    """Shapes of z, γ and β, and the axis of the moments."""

    z: tuple[int, ...]
    gamma: tuple[int, ...] | None
    beta: tuple[int, ...] | None
    dim: int


CASES = {
    "batch": Case((2, 5, 3), (2, 1, 3), (2, 1, 3), 1),
    "batch_plain": Case((2, 5, 3), None, None, 1),
    "gamma_alone": Case((2, 5, 3), (2, 1, 3), None, 1),
    "beta_alone": Case((2, 5, 3), None, (2, 1, 3), 1),
    "instance": Case((2, 3, 4, 2), (2, 1, 1, 2), (2, 1, 1, 2), 2),  # one γ for several groups
    "instance_beta_alone": Case((2, 3, 4, 2), None, (2, 1, 1, 2), 2),
    "all_share": Case((2, 4, 3), (1, 1, 3), (1, 1, 3), 1),
    "fewer_axes": Case((2, 4, 3), (3,), (3,), 1),
    "one_number": Case((2, 4, 3), (), (), 1),
    "last_axis": Case((2, 3, 5), None, None, -1),
    "last_axis_gamma": Case((2, 3, 5), (2, 1, 1), (2, 1, 1), -1),
    "first_axis": Case((4, 3), (1, 3), (1, 3), 0),
    "one_axis": Case((5,), None, None, 0),
}
WIDE = {  # more elements than are summed at once, and strips of 32, 8 and 1 channels
    "wide": Case((2, 70, 43), (2, 1, 43), (2, 1, 43), 1),
    "wide_shared": Case((2, 3, 33, 41), (41,), None, 2),
    "wide_plain": Case((1, 32, 64), None, None, 1),
}
EPS = 1e-2  # large enough to be seen in every derivative

cases = pytest.mark.parametrize("case", CASES)
all_cases = pytest.mark.parametrize("case", [*CASES, *WIDE])
leaks = pytest.mark.parametrize(
    "leak", [1.0, 0.0, 0.1, 2.0], ids=["plain", "relu", "leaky", "steep"]
)


def case_of(name: str) -> Case:
    return (CASES | WIDE)[name]


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    source = oracles.generator(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64).requires_grad_()


def operands(case: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
    z, gamma, beta, _ = case_of(case)
    return (
        noise(z, 0),
        None if gamma is None else noise(gamma, 1),
        None if beta is None else noise(beta, 2),
    )


def composite(
    z: Tensor, gamma: Tensor | None, beta: Tensor | None, *, dim: int, eps: float, leak: float
) -> Tensor:
    """The definition, differentiable any number of times."""
    variance = z.var(dim, correction=0, keepdim=True)
    y = (z - z.mean(dim, keepdim=True)) / (variance + eps).sqrt()
    y = y if gamma is None else y * gamma
    y = y if beta is None else y + beta
    return y if leak == 1 else torch.where(y > 0, y, leak * y)


@all_cases
@leaks
def test_values_are_the_definition(case: str, leak: float) -> None:
    settings = {"dim": case_of(case).dim, "eps": EPS, "leak": leak}
    given = operands(case)
    actual, expected = normalize(*given, **settings), composite(*given, **settings)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert bool((actual == 0).any()) == (leak == 0)


@cases
@leaks
def test_first_and_second_derivatives_by_finite_differences(case: str, leak: float) -> None:
    given = operands(case)
    present = [v for v in given if v is not None]

    def function(*values: Tensor) -> Tensor:
        supply = iter(values)
        full = [None if v is None else next(supply) for v in given]
        return normalize(*full, dim=case_of(case).dim, eps=EPS, leak=leak)

    assert gradcheck(function, present)
    assert gradgradcheck(function, present)


def derivatives(function: Any, case: str, wanted: tuple[int, ...], **settings: Any) -> list[Tensor]:
    """First derivatives by ``wanted`` operands, and those of a function of them by all."""
    given = operands(case)
    some = [given[i] for i in wanted if given[i] is not None]
    loss = (function(*given, **settings) ** 3).sum()
    first = torch.autograd.grad(loss, some, create_graph=True)
    total = sum((g * (i + g)).sum() for i, g in enumerate(first, 1))
    return [*first, *torch.autograd.grad(total, [v for v in given if v is not None])]


@all_cases
@leaks
@pytest.mark.parametrize("wanted", [(0,), (0, 1), (0, 2), (0, 1, 2)], ids=str)
def test_second_order_whatever_is_wanted_of_it(
    case: str, leak: float, wanted: tuple[int, ...]
) -> None:
    settings = {"dim": case_of(case).dim, "eps": EPS, "leak": leak}
    actual = derivatives(normalize, case, wanted, **settings)
    expected = derivatives(composite, case, wanted, **settings)
    for a, e in zip(actual, expected):
        torch.testing.assert_close(
            a, e, rtol=1e-9, atol=1e-9 * max(1.0, float(e.detach().abs().max()))
        )


@leaks
@pytest.mark.parametrize("wanted", [(1,), (2,), (1, 2)], ids=str)
def test_second_order_through_gradients_of_scale_and_shift_alone(
    leak: float, wanted: tuple[int, ...]
) -> None:
    for case in ("batch", "instance", "all_share", "fewer_axes"):
        settings = {"dim": case_of(case).dim, "eps": EPS, "leak": leak}
        actual = derivatives(normalize, case, wanted, **settings)
        expected = derivatives(composite, case, wanted, **settings)
        for a, e in zip(actual, expected):
            torch.testing.assert_close(
                a, e, rtol=1e-9, atol=1e-9 * max(1.0, float(e.detach().abs().max()))
            )


@leaks
@pytest.mark.parametrize("data", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
def test_operands_that_are_data_have_no_gradient(leak: float, data: tuple[int, ...]) -> None:
    settings = {"dim": 1, "eps": EPS, "leak": leak}
    results = []
    for function in (normalize, composite):
        given = [v.detach().requires_grad_(i not in data) for i, v in enumerate(operands("batch"))]
        wanted = [v for v in given if v.requires_grad]
        loss = (function(*given, **settings) ** 3).sum()
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), wanted)
        results.append([*first, *second])
    for a, e in zip(*results):
        torch.testing.assert_close(
            a, e, rtol=1e-9, atol=1e-9 * max(1.0, float(e.detach().abs().max()))
        )


@cases
def test_third_derivatives_are_refused(case: str) -> None:
    given = operands(case)
    loss = (normalize(*given, dim=case_of(case).dim, eps=EPS) ** 3).sum()
    (first,) = torch.autograd.grad(loss, given[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives of a task-batched normali"):
        torch.autograd.grad((first**2).sum(), given[0], create_graph=True)


def test_third_derivatives_by_scale_are_refused() -> None:
    z, gamma, _ = operands("batch")
    loss = (normalize(z.detach(), gamma, None, dim=1, eps=EPS) ** 3).sum()
    (first,) = torch.autograd.grad(loss, gamma, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives of a task-batched normali"):
        torch.autograd.grad((first**2).sum(), gamma, create_graph=True)


def test_a_graph_that_is_used_twice_gives_the_same() -> None:
    """Cotangents written in place are nobody else's."""
    given = operands("batch")
    loss = (normalize(*given, dim=1, eps=EPS, leak=0.0) ** 3).sum()
    found = []
    for _ in range(2):
        first = torch.autograd.grad(loss, given, create_graph=True)
        total = sum((g**2).sum() for g in first)
        found += [torch.autograd.grad(total, given, retain_graph=True) for _ in range(2)]
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(again, found[0]))


def test_an_activation_in_place_on_the_result() -> None:
    """Without ReLU the result is not kept for the way back, so it may be overwritten."""
    results = []
    for function in (normalize, composite):
        given = operands("batch")
        y = function(*given, dim=1, eps=EPS, leak=1.0)
        first = torch.autograd.grad((y.tanh_() ** 2).sum(), given, create_graph=True)
        results.append(torch.autograd.grad(sum((g**2).sum() for g in first), given))
    for a, e in zip(*results):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 1, 0)], ids=str)
def test_any_order_of_memory_and_of_the_cotangent(order: tuple[int, ...]) -> None:
    z, gamma, beta = (v.detach() for v in operands("batch"))
    strided = z.permute(order).contiguous().permute(torch.tensor(order).argsort().tolist())
    weight = noise((5, 2, 3), 7).detach().transpose(0, 1)
    results = []
    for function, start in ((normalize, strided), (composite, z)):
        start = start.requires_grad_()
        y = function(start, gamma, beta, dim=1, eps=EPS, leak=1.0)
        (first,) = torch.autograd.grad((y.sin() * weight).sum(), start, create_graph=True)
        results.append((first, *torch.autograd.grad((first * weight).square().sum(), start)))
    for a, e in zip(*results):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


def test_groups_of_equal_elements_have_finite_derivatives() -> None:
    """The variance is zero: y = β, and r = eps^(−1/2) is the largest it can be."""
    z = torch.full((1, 4, 2), 3.0, dtype=torch.float64, requires_grad=True)
    y = normalize(z, None, None, dim=1, eps=EPS)
    assert torch.equal(y, torch.zeros_like(z))
    weight = noise((1, 4, 2), 3).detach()
    (first,) = torch.autograd.grad((y * weight).sum(), z, create_graph=True)
    expected = (weight - weight.mean(1, keepdim=True)) / EPS**0.5
    torch.testing.assert_close(first, expected)
    (second,) = torch.autograd.grad((first**2).sum(), z)
    assert torch.equal(second, torch.zeros_like(z))  # by symmetry of z − m in its sign


def test_a_slope_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        normalize(noise((2, 3), 0), None, None, dim=0, eps=EPS, leak=-0.1)


@pytest.mark.parametrize("leak", [0.0, 0.1])
def test_results_that_are_no_numbers(leak: float) -> None:
    """Torch's leaky ReLU is closed there, its ReLU open."""
    z, beta = noise((2, 5, 9), 0), noise((2, 1, 9), 1).detach()
    beta[:, :, 3] = float("nan")
    act = (lambda y: y.relu()) if leak == 0 else (lambda y: F.leaky_relu(y, leak))
    y = normalize(z, None, beta, dim=1, eps=EPS, leak=leak)
    expected = act(composite(z, None, beta, dim=1, eps=EPS, leak=1.0))
    torch.testing.assert_close(y, expected, equal_nan=True)
    slope = noise((2, 5, 9), 2).detach()
    found = [torch.autograd.grad(v, z, slope)[0] for v in (y, expected)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)
