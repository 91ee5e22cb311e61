"""The engine that the tour takes apart, by itself: closed forms, torch, finite differences."""

import math
import operator
from typing import Any

import pytest
import torch

from metalearn.core import functionalize, hessian
from metalearn.models import MLP
from metalearn.tour.scalar_engine import Scalar, gradients, vmap


def values(scalars: Any) -> list[float]:
    return [scalar.value for scalar in scalars]


@pytest.mark.parametrize(("a", "b"), [(2.0, 3.0), (-1.5, 0.25), (0.0, -2.0), (0.0, 0.0)])
def test_polynomial_and_its_second_derivatives_have_their_closed_forms(a: float, b: float) -> None:
    x, y = Scalar(a), Scalar(b)
    f = x**4 * y + y**3
    assert f.value == pytest.approx(a**4 * b + b**3, abs=1e-14)
    fx, fy = gradients(f, [x, y])
    assert values([fx, fy]) == pytest.approx([4 * a**3 * b, a**4 + 3 * b**2], abs=1e-14)
    second = values(gradients(fx, [x, y])) + values(gradients(fy, [x, y]))
    expected = [12 * a**2 * b, 4 * a**3, 4 * a**3, 6 * b]
    assert second == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(
    ("f", "slope"),
    [
        (lambda x: 3 - x, lambda v: -1),
        (lambda x: x - 3, lambda v: 1),
        (lambda x: 2 * x + x * 5 + 1 + x, lambda v: 8),
        (lambda x: -x * x, lambda v: -2 * v),
        (lambda x: x**-1, lambda v: -1 / v**2),
        (lambda x: x**0, lambda v: 0),
        (lambda x: x.tanh(), lambda v: 1 - math.tanh(v) ** 2),
        (lambda x: (x * x).tanh() * x, lambda v: _composed(v)),
    ],
)
def test_each_operation(f: Any, slope: Any) -> None:
    x = Scalar(0.7)
    assert values(gradients(f(x), [x])) == pytest.approx([slope(0.7)], rel=1e-14)


def _composed(v: float) -> float:
    return math.tanh(v * v) + 2 * v * v * (1 - math.tanh(v * v) ** 2)


def test_a_number_used_many_times_is_walked_through_once() -> None:
    start = power = Scalar(1.0)
    for _ in range(60):  # as a tree, 2^60 leaves
        power = power + power
    assert values(gradients(power, [start])) == [2.0**60]


def test_a_number_without_effect_has_gradient_zero() -> None:
    x, y = Scalar(1.0), Scalar(2.0)
    assert values(gradients(x * 3, [x, y])) == [3.0, 0.0]


def test_vmap_over_one_and_over_two_lists() -> None:
    assert vmap(operator.sub, (0, None))([1, 2, 3], 1) == [0, 1, 2]
    assert vmap(vmap(operator.mul, (None, 0)), (0, None))([1, 2], [3, 4]) == [[3, 4], [6, 8]]


def test_linear_regression_as_torch_has_it() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(12, generator=generator, dtype=torch.float64)
    w = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
    loss = (x @ w - y).square().mean()
    loss.backward()

    weights = [Scalar(v) for v in w.tolist()]
    residuals = [
        sum(a * b for a, b in zip(weights, row)) - target
        for row, target in zip(x.tolist(), y.tolist())
    ]
    own = sum(r**2 for r in residuals) * (1 / 12)
    assert own.value == pytest.approx(loss.item(), rel=1e-13)
    first = gradients(own, weights)
    assert values(first) == pytest.approx(w.grad.tolist(), rel=1e-12)
    second = torch.tensor([values(gradients(g, weights)) for g in first], dtype=torch.float64)
    torch.testing.assert_close(second, 2 / 12 * x.T @ x, rtol=1e-12, atol=1e-12)


def test_tanh_network_gradient_and_hessian_as_ours() -> None:
    w1, w2 = [[0.3, -0.2], [0.5, 0.1]], [0.7, -0.4]
    x, y = [[1.0, 2.0], [-1.0, 0.5], [0.2, -0.3]], [0.1, 0.4, -0.2]

    def scalar_loss(w1, w2):
        total = Scalar(0)
        for row, target in zip(x, y):
            hidden = [sum(a * b for a, b in zip(unit, row)).tanh() for unit in w1]
            total = total + (sum(a * b for a, b in zip(w2, hidden)) - target) ** 2
        return total * (1 / 3)

    first, second = [[Scalar(v) for v in row] for row in w1], [Scalar(v) for v in w2]
    every = [*first[0], *first[1], *second]
    slopes = gradients(scalar_loss(first, second), every)
    own_hessian = torch.tensor([values(gradients(g, every)) for g in slopes], dtype=torch.float64)

    targets = torch.tensor(y, dtype=torch.float64)
    params = {
        "first": torch.tensor(w1, dtype=torch.float64),
        "second": torch.tensor(w2, dtype=torch.float64),
    }
    inputs = torch.tensor(x, dtype=torch.float64)

    def loss(p):
        return (torch.tanh(inputs @ p["first"].T) @ p["second"] - targets).square().mean()

    theirs = torch.func.grad(loss)(params)
    flat = torch.cat([theirs["first"].reshape(-1), theirs["second"]]).tolist()
    assert values(slopes) == pytest.approx(flat, rel=1e-12)
    torch.testing.assert_close(own_hessian, hessian(loss, as_matrix=True)(params))


def test_a_module_made_functional_by_name() -> None:
    apply, params, buffers = functionalize(MLP((2,), 1, hidden=(), seed=3).double())
    x = torch.tensor([[0.5, -1.0], [2.0, 0.25]], dtype=torch.float64)
    grads = torch.func.grad(lambda p: apply(p, buffers, x).square().sum())(params)
    (w, b) = params.values()
    weights, bias = [Scalar(v) for v in w[0].tolist()], Scalar(b.item())
    outputs = [sum(a * v for a, v in zip(weights, row)) + bias for row in x.tolist()]
    own = values(gradients(sum(o * o for o in outputs), [*weights, bias]))
    assert own == pytest.approx([*grads["1.weight"][0].tolist(), grads["1.bias"].item()], rel=1e-12)
